// The product of two fp32 matrices whose values are rounded to bf16, with AMX.
//
// Both factors are cut into tiles of 16 lines by 32 k (a line is a row of A or a column of B) while
// they are rounded, whichever of the two dimensions lies contiguous. A tile's 32-bit lanes hold two
// neighbouring k:
//   A's tile [16 lines][16 pairs of k], B's tile [16 pairs of k][16 lines]
// so what is contiguous in k gives rows of A's tile and what is contiguous in lines rows of B's;
// the other one is a transposition of 16 x 16 lanes. Then C goes by blocks of 32 x 32 over four
// tiles.

#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_config.h"
#include "kernels/train/avx512.h"

namespace skein::kernels::train {
namespace {

constexpr int64_t kLines = 16, kDepth = 32, kTile = kLines * kDepth;  // bf16 values
constexpr int64_t kBlock = 2 * kLines;

int64_t Tiles(int64_t n, int64_t size) { return (n + size - 1) / size; }

// The first n of 16 lanes.
__mmask16 First(int64_t n) {
  return n >= 16 ? __mmask16(0xFFFF) : n <= 0 ? __mmask16(0) : __mmask16((1 << n) - 1);
}

__m512i Round(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// One factor: value (line, k) at data[line * line_stride + k * k_stride]; one stride is 1.
struct Factor {
  const float* data;
  int64_t lines, K, line_stride, k_stride;
};

void Transpose(__m512i* r) {
  __m512i s[16];
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {  // lanes of 128 bits, of rows i, i + 4, i + 8, i + 12
    const __m512i even = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88),
                  odd = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD),
                  even2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88),
                  odd2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    s[i] = _mm512_shuffle_i32x4(even, even2, 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    s[i + 8] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    s[i + 12] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
  std::copy_n(s, 16, r);
}

// The tile of lines from `line` and k from `k`; beyond the factor's ends it is zero.
void PackTile(const Factor& f, int64_t line, int64_t k, bool lines_as_rows, uint16_t* tile) {
  const float* from = f.data + line * f.line_stride + k * f.k_stride;
  const bool along_k = f.k_stride == 1;
  const int64_t lines = f.lines - line, depth = f.K - k;
  __m512i rows[16];
  if (along_k) {
    const __mmask16 low = First(depth), high = First(depth - 16);
    for (int i = 0; i < 16; ++i) {
      const float* row = from + i * f.line_stride;
      const bool exists = i < lines;
      rows[i] = Round(_mm512_maskz_loadu_ps(exists ? low : 0, row),
                      _mm512_maskz_loadu_ps(exists ? high : 0, row + 16));
    }
  } else {
    alignas(64) static constexpr uint16_t kInterleave[32] = {
        0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i order = _mm512_load_si512(kInterleave);
    const __mmask16 mask = First(lines);
    for (int64_t i = 0; i < 16; ++i) {
      const float* row = from + 2 * i * f.k_stride;
      const __m512 first = _mm512_maskz_loadu_ps(2 * i < depth ? mask : 0, row),
                   second = _mm512_maskz_loadu_ps(2 * i + 1 < depth ? mask : 0, row + f.k_stride);
      rows[i] = _mm512_permutexvar_epi16(order, Round(first, second));
    }
  }
  if (along_k != lines_as_rows) Transpose(rows);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kDepth, rows[i]);
}

// Tiles in the order [block of 16 lines][block of 32 k].
void Pack(const Factor& f, int64_t begin, int64_t end, bool lines_as_rows, uint16_t* tiles) {
  for (int64_t line = begin; line < end; line += kLines) {
    for (int64_t k = 0; k < f.K; k += kDepth, tiles += kTile) {
      PackTile(f, line, k, lines_as_rows, tiles);
    }
  }
}

// sums [32, 32] = two blocks of A's lines times two of B's, over `depth` tiles.
void MultiplyBlock(const uint16_t* a, const uint16_t* b, int64_t depth, float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  // What was packed has to be there: the compiler does not see what a tile reads.
  __asm__ volatile("" ::: "memory");
  for (int64_t k = 0; k < depth; ++k, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(5, a + depth * kTile, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + depth * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 4 * kBlock);
  _tile_stored(1, sums + kLines, 4 * kBlock);
  _tile_stored(2, sums + kLines * kBlock, 4 * kBlock);
  _tile_stored(3, sums + kLines * kBlock + kLines, 4 * kBlock);
  __asm__ volatile("" ::: "memory");
}

void StoreBlock(const ProductArgs& p, const float* sums, int64_t m, int64_t n) {
  const int64_t rows = std::min(kBlock, p.M - m);
  for (int64_t j = 0; j < kBlock; j += 16) {
    const __mmask16 mask = First(p.N - n - j);
    const __m512 bias =
        p.bias != nullptr ? _mm512_maskz_loadu_ps(mask, p.bias + n + j) : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      _mm512_mask_storeu_ps(p.c + (m + i) * p.N + n + j, mask,
                            _mm512_load_ps(sums + i * kBlock + j) + bias);
    }
  }
}

}  // namespace

void AmxProduct(const ProductArgs& p, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const Factor A{p.a, p.M, p.K, p.a_row, p.a_column}, B{p.b, p.N, p.K, p.b_column, p.b_row};
  const int64_t depth = Tiles(p.K, kDepth), columns = Tiles(p.N, kBlock) * 2,
                per_block = 2 * depth * kTile;
  float* memory = ThreadScratch(kBlock * kBlock + (per_block + columns * depth * kTile + 1) / 2);
  uint16_t* a = reinterpret_cast<uint16_t*>(memory + kBlock * kBlock);
  uint16_t* b = a + per_block;
  Pack(B, 0, columns * kLines, false, b);
  ConfigureTiles(kLines);
  for (int64_t block = begin; block < end; ++block) {
    Pack(A, block * kBlock, (block + 1) * kBlock, true, a);
    for (int64_t n = 0; n < p.N; n += kBlock) {
      MultiplyBlock(a, b + n / kLines * depth * kTile, depth, memory);
      StoreBlock(p, memory, block * kBlock, n);
    }
  }
  _tile_release();
}

}  // namespace skein::kernels::train
