// The first eight bytes say how large the image is that the loader expects; the rest is the header.

#include <cstddef>
#include <cstdint>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/models/packed_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace skein::engine;
  if (size < 8) return 0;
  const uint64_t image_bytes = LoadLittleEndian<uint64_t>(data) % (uint64_t{1} << 40);
  const absl::string_view rest(reinterpret_cast<const char*>(data) + 8, size - 8);
  const auto header = ParsePackedHeader(rest, image_bytes);
  if (header.ok()) {
    SKEIN_CHECK(EncodePackedHeader(*header).substr(0, 64) == rest.substr(0, 64));
  }
  return 0;
}
