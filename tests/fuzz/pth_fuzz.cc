// The input as a whole .pth, and as the pickle inside one (which the zip around it would hide from
// the fuzzer behind lengths and checksums).

#include <cstddef>
#include <cstdint>

#include "engine/checkpoint/pickle_reader.h"
#include "tests/fuzz/checkpoint_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const auto checkpoint = skein::engine::ParsePth(input);
  if (checkpoint.ok()) skein::engine::UseCheckpoint(**checkpoint);
  skein::engine::ReadPickledStateDict(input).status().IgnoreError();
  return 0;
}
