#pragma once
// The configuration of AMX's eight tiles, 64 bytes a row each: 0..3 sums, 4 and 5 the left factor,
// 6 and 7 the right one. For files compiled with AMX only; internal linkage on purpose: see
// number_format.h.

#include <immintrin.h>

#include <cstdint>

namespace skein::kernels {
namespace {

struct alignas(64) TileConfig {
  // Tiles of sums and of the left factor have `rows`, 1 to 16, those of the right one 16.
  explicit TileConfig(int rows) {
    const auto n = static_cast<uint8_t>(rows);
    for (int tile = 0; tile < 8; ++tile) {
      bytes_of_row[tile] = 64;
      rows_of[tile] = tile < 6 ? n : 16;
    }
  }
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_of_row[16] = {};
  uint8_t rows_of[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Until _tile_release; the tiles are the calling thread's.
inline void ConfigureTiles(int rows) {
  const TileConfig config(rows);
  __asm__ volatile("" : : "m"(config));  // GCC 12 believes that eight bytes of it are read
  _tile_loadconfig(&config);
}

}  // namespace
}  // namespace skein::kernels
