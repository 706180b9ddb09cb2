#include <cstddef>
#include <cstdint>

#include "tests/fuzz/checkpoint_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto checkpoint =
      skein::engine::ParseSafetensors({reinterpret_cast<const char*>(data), size});
  if (checkpoint.ok()) skein::engine::UseCheckpoint(**checkpoint);
  return 0;
}
