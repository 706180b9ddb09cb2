#pragma once
// CRC-32 as in zip (polynomial 0xEDB88320, reflected).

#include <cstddef>
#include <cstdint>

namespace skein::engine {

// `crc` is the result for what came before; 0 at the start.
uint32_t Crc32(const void* data, size_t bytes, uint32_t crc = 0);

}  // namespace skein::engine
