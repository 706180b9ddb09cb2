#pragma once
// Products of fp32 matrices on bf16 tiles that keep 16 bits of each factor: x = high + low, both
// bf16, and A B = A_high B_high + A_low B_high + A_high B_low. What is left out, and what low is
// cut off by, is 2^-16 of a product.
//
// A 32-bit lane holds the values of two k, 16 apart: the lower half that of k, the upper half that
// of k + 16. So a tile takes 32 k as they lie in two vectors, without a permutation, and the tiles
// of a matrix as the left factor are, lane for lane, the transposition of its tiles as the right
// factor of its transpose:
//
//   rows of X     [lines][16 pairs of k]: X as the left factor
//   columns of X  [16 pairs of k][lines]: X^T as the right factor, lines being its columns
//
// In an unnamed namespace, and for files compiled with AMX only.

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/tile_config.h"
#include "kernels/train/simd_avx512.h"

namespace skein::kernels::train {
namespace {

constexpr int64_t kTileLanes = 256;

struct Words {
  __m512i high, low;
};

// 16 lanes of x0 (the lower halves) and x1, rounded.
inline Words Split(__m512 x0, __m512 x1) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xFFFF0000)),
                half = _mm512_set1_epi32(0x8000);
  const __m512i r0 = _mm512_add_epi32(_mm512_castps_si512(x0), half),
                r1 = _mm512_add_epi32(_mm512_castps_si512(x1), half);
  const __m512i h0 = _mm512_and_si512(r0, upper), h1 = _mm512_and_si512(r1, upper);
  const __m512i l0 = _mm512_castps_si512(_mm512_sub_ps(x0, _mm512_castsi512_ps(h0))),
                l1 = _mm512_castps_si512(_mm512_sub_ps(x1, _mm512_castsi512_ps(h1)));
  constexpr int kFirstAndSecondOrThird = 0xEA;
  return {_mm512_or_si512(h1, _mm512_srli_epi32(r0, 16)),
          _mm512_ternarylogic_epi32(_mm512_add_epi32(l1, half), upper,
                                    _mm512_srli_epi32(_mm512_add_epi32(l0, half), 16),
                                    kFirstAndSecondOrThird)};
}

// Tiles of one matrix, [blocks of 16 lines][blocks of 32 k][high, low].
struct Tiles {
  uint32_t* data = nullptr;
  int64_t depth = 0;  // blocks of k

  uint32_t* At(int64_t block, int64_t k) const {
    return data + (block * depth + k) * 2 * kTileLanes;
  }
  void Put(int64_t block, int64_t k, int64_t row, const Words& words) const {
    uint32_t* to = At(block, k) + row * 16;
    _mm512_store_si512(to, words.high);
    _mm512_store_si512(to + kTileLanes, words.low);
  }
};

// `to` gets the transposition of each of `from`'s tiles: columns from rows, or rows from columns.
// Both may be the same.
inline void TransposeTiles(const Tiles& from, int64_t blocks, const Tiles& to) {
  for (int64_t tile = 0; tile < 2 * blocks * from.depth; ++tile) {
    __m512i rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      rows[i] = _mm512_load_si512(from.data + tile * kTileLanes + i * 16);
    }
    Transpose(rows);
    for (int64_t i = 0; i < 16; ++i) {
      _mm512_store_si512(to.data + tile * kTileLanes + i * 16, rows[i]);
    }
  }
}

// One or two blocks of a's lines times two of b's, at c; a and b are the first tiles of each.
template <int kRows>
void MultiplyBlock(const uint32_t* a, const uint32_t* b, int64_t depth, float* c, int64_t stride,
                   bool add) {
  float* below = c + 16 * stride;
  // The compiler does not see what a tile reads and writes.
  __asm__ volatile("" ::: "memory");
  if (add) {
    _tile_loadd(0, c, 4 * stride);
    _tile_loadd(1, c + 16, 4 * stride);
    if (kRows == 2) _tile_loadd(2, below, 4 * stride);
    if (kRows == 2) _tile_loadd(3, below + 16, 4 * stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const int64_t next = 2 * depth * kTileLanes;  // the same tile of the next block
  for (int64_t k = 0; k < depth; ++k, a += 2 * kTileLanes, b += 2 * kTileLanes) {
    const uint32_t *a_low = a + kTileLanes, *b_low = b + kTileLanes;
    _tile_loadd(4, a_low, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + next, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kRows == 2) {
      _tile_loadd(5, a_low + next, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kRows == 2) {
      _tile_loadd(5, a + next, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_loadd(6, b_low, 64);
    _tile_loadd(7, b_low + next, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if (kRows == 2) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 4 * stride);
  _tile_stored(1, c + 16, 4 * stride);
  if (kRows == 2) _tile_stored(2, below, 4 * stride);
  if (kRows == 2) _tile_stored(3, below + 16, 4 * stride);
  __asm__ volatile("" ::: "memory");
}

// c = a b, or c += a b: `rows` blocks of a's lines from its first one on (one, or an even number),
// and `columns` (even) of b's. Between ConfigureTiles(16) and _tile_release.
inline void Multiply(const Tiles& a, int64_t rows, const Tiles& b, int64_t columns, float* c,
                     int64_t stride, bool add) {
  for (int64_t i = 0; i < rows; i += 2) {
    for (int64_t j = 0; j < columns; j += 2) {
      (rows == 1 ? MultiplyBlock<1> : MultiplyBlock<2>)(a.At(i, 0), b.At(j, 0), a.depth,
                                                        c + 16 * (i * stride + j), stride, add);
    }
  }
}

}  // namespace
}  // namespace skein::kernels::train
