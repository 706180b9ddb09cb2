// The product of two fp32 matrices whose values are rounded to bf16, with AMX.
//
// Both factors are cut into tiles of 16 lines by 32 k (a line is a row of A or a column of B) while
// they are rounded, whichever of the two dimensions lies contiguous. A tile's 32-bit lanes hold two
// neighbouring k:
//   A's tile [16 lines][16 pairs of k], B's tile [16 pairs of k][16 lines]
// so what is contiguous in k gives rows of A's tile and what is contiguous in lines rows of B's;
// the other one is a transposition of 16 x 16 lanes. Then C goes by blocks of 32 x 32 over four
// tiles: a call packs one factor whole, and of the other some lines at a time.

#include <immintrin.h>

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/tile_config.h"
#include "kernels/train/avx512.h"
#include "kernels/train/simd_avx512.h"

namespace skein::kernels::train {
namespace {

constexpr int64_t kLines = 16, kDepth = 32, kTile = kLines * kDepth;  // bf16 values
constexpr int64_t kBlock = 2 * kLines;
static_assert(kBlock == kProductLines);
// bf16 values of the factor that is cut which are packed at once: of a transposed one, neighbouring
// lines lie in the same lines of the cache.
constexpr int64_t kTogether = 1 << 16;

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

// 16 lines by 32 k at `from`, rounded, of which `lines` by `depth` exist; the rest is zero. Where k
// lies contiguous: a row per line.
template <bool kWhole>
void LoadLines(const float* from, int64_t stride, int64_t lines, int64_t depth, __m512i* rows) {
  const __mmask16 low = First(depth), high = First(depth - 16);
  for (int i = 0; i < 16; ++i, from += stride) {
    const bool exists = i < lines;
    rows[i] = kWhole ? Round(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16))
                     : Round(_mm512_maskz_loadu_ps(exists ? low : 0, from),
                             _mm512_maskz_loadu_ps(exists ? high : 0, from + 16));
  }
}

// Where lines lie contiguous: a row per pair of k.
template <bool kWhole>
void LoadPairs(const float* from, int64_t stride, int64_t lines, int64_t depth, __m512i* rows) {
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i order = _mm512_load_si512(kInterleave);
  const __mmask16 mask = First(lines);
  for (int i = 0; i < 16; ++i, from += 2 * stride) {
    const __m512i pair =
        kWhole ? Round(_mm512_loadu_ps(from), _mm512_loadu_ps(from + stride))
               : Round(_mm512_maskz_loadu_ps(2 * i < depth ? mask : 0, from),
                       _mm512_maskz_loadu_ps(2 * i + 1 < depth ? mask : 0, from + stride));
    rows[i] = _mm512_permutexvar_epi16(order, pair);
  }
}

// The tile of lines from `line` and k from `k`; beyond the factor's ends it is zero.
void PackTile(const Factor& f, int64_t line, int64_t k, bool lines_as_rows, uint16_t* tile) {
  const float* from = f.data + line * f.line_stride + k * f.k_stride;
  const bool along_k = f.k_stride == 1;
  const int64_t lines = f.lines - line, depth = f.K - k;
  const bool whole = lines >= kLines && depth >= kDepth;
  __m512i rows[16];
  if (along_k) {
    (whole ? LoadLines<true> : LoadLines<false>)(from, f.line_stride, lines, depth, rows);
  } else {
    (whole ? LoadPairs<true> : LoadPairs<false>)(from, f.k_stride, lines, depth, rows);
  }
  if (along_k != lines_as_rows) Transpose(rows);
  for (int i = 0; i < 16; ++i) _mm512_store_si512(tile + i * kDepth, rows[i]);
}

// Tiles in the order [block of 16 lines][block of 32 k], made in the order in which the factor lies
// in memory.
void Pack(const Factor& f, int64_t begin, int64_t end, bool lines_as_rows, uint16_t* tiles) {
  const int64_t blocks = (end - begin) / kLines, depth = Tiles(f.K, kDepth);
  const auto pack = [&](int64_t block, int64_t k) {
    PackTile(f, begin + block * kLines, k * kDepth, lines_as_rows,
             tiles + (block * depth + k) * kTile);
  };
  if (f.k_stride == 1) {
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t k = 0; k < depth; ++k) pack(block, k);
    }
  } else {
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t block = 0; block < blocks; ++block) pack(block, k);
    }
  }
}

// to [32, 32] = start + two blocks of A's lines times two of B's, over `depth` tiles. Strides are
// of rows, in floats; start may be null, for zeros.
void MultiplyBlock(const uint16_t* a, const uint16_t* b, int64_t depth, const float* start,
                   int64_t start_stride, float* to, int64_t stride) {
  if (start != nullptr) {
    const float* below = start + kLines * start_stride;
    _tile_loadd(0, start, 4 * start_stride);
    _tile_loadd(1, start + kLines, 4 * start_stride);
    _tile_loadd(2, below, 4 * start_stride);
    _tile_loadd(3, below + kLines, 4 * start_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
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
  float* below = to + kLines * stride;
  _tile_stored(0, to, 4 * stride);
  _tile_stored(1, to + kLines, 4 * stride);
  _tile_stored(2, below, 4 * stride);
  _tile_stored(3, below + kLines, 4 * stride);
  __asm__ volatile("" ::: "memory");
}

// A block of c that is smaller than 32 x 32.
void StoreBlock(const ProductArgs& p, const float* sums, int64_t m, int64_t n) {
  const int64_t rows = std::min(kBlock, p.M - m);
  for (int64_t j = 0; j < kBlock; j += 16) {
    const __mmask16 mask = First(p.N - n - j);
    const __m512 bias =
        p.bias != nullptr ? _mm512_maskz_loadu_ps(mask, p.bias + n + j) : _mm512_setzero_ps();
    for (int64_t i = 0; i < rows; ++i) {
      float* c = p.c + (m + i) * p.N + n + j;
      const __m512 to = p.add ? _mm512_maskz_loadu_ps(mask, c) : bias;
      _mm512_mask_storeu_ps(c, mask, _mm512_load_ps(sums + i * kBlock + j) + to);
    }
  }
}

// The block of c at row m and column n; `sums` [32, 32] is scratch.
void ProductBlock(const ProductArgs& p, const uint16_t* a, const uint16_t* b, int64_t depth,
                  int64_t m, int64_t n, float* sums) {
  if (m + kBlock > p.M || n + kBlock > p.N) {
    MultiplyBlock(a, b, depth, nullptr, 0, sums, kBlock);
    StoreBlock(p, sums, m, n);
    return;
  }
  float* c = p.c + m * p.N + n;
  const float* bias = p.bias != nullptr ? p.bias + n : nullptr;
  MultiplyBlock(a, b, depth, p.add ? c : bias, p.add ? p.N : 0, c, p.N);
}

}  // namespace

void AmxProduct(const ProductArgs& p, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const bool columns = p.by_columns();
  const Factor A{p.a, p.M, p.K, p.a_row, p.a_column}, B{p.b, p.N, p.K, p.b_column, p.b_row};
  const Factor &whole = columns ? A : B, &cut = columns ? B : A;
  const int64_t depth = Tiles(p.K, kDepth), per_block = 2 * depth * kTile,
                blocks = Tiles(whole.lines, kBlock);
  const int64_t together = std::clamp<int64_t>(kTogether / per_block, 1, end - begin);
  float* sums = ThreadScratch(kBlock * kBlock + ((blocks + together) * per_block + 1) / 2);
  uint16_t* some = reinterpret_cast<uint16_t*>(sums + kBlock * kBlock);
  uint16_t* all = some + together * per_block;
  Pack(whole, 0, blocks * kBlock, columns, all);
  ConfigureTiles(kLines);
  for (int64_t first = begin; first < end; first += together) {
    const int64_t count = std::min(together, end - first);
    Pack(cut, first * kBlock, (first + count) * kBlock, !columns, some);
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t* mine = some + i * per_block;
      for (int64_t other = 0; other < blocks; ++other) {
        const uint16_t* theirs = all + other * per_block;
        ProductBlock(p, columns ? theirs : mine, columns ? mine : theirs, depth,
                     (columns ? other : first + i) * kBlock, (columns ? first + i : other) * kBlock,
                     sums);
      }
    }
  }
  _tile_release();
}

}  // namespace skein::kernels::train
