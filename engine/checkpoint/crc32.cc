#include "engine/checkpoint/crc32.h"

#include <array>

#include "engine/checkpoint/bytes.h"

namespace skein::engine {
namespace {

using Table = std::array<std::array<uint32_t, 256>, 8>;

// table[k][b]: the CRC of byte b followed by k zero bytes, so that eight bytes go in one step.
constexpr Table MakeTable() {
  Table table{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0u);
    table[0][b] = crc;
  }
  for (uint32_t b = 0; b < 256; ++b) {
    for (size_t k = 1; k < 8; ++k) {
      const uint32_t crc = table[k - 1][b];
      table[k][b] = (crc >> 8) ^ table[0][crc & 0xff];
    }
  }
  return table;
}

constexpr Table kTable = MakeTable();

}  // namespace

uint32_t Crc32(const void* data, size_t bytes, uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(data);
  crc = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    const uint64_t word = LoadLittleEndian<uint64_t>(p) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTable[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; bytes > 0; --bytes) crc = (crc >> 8) ^ kTable[0][(crc ^ *p++) & 0xff];
  return ~crc;
}

}  // namespace skein::engine
