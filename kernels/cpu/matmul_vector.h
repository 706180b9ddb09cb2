#pragma once
// The matmul kernel of floating-point weights in vector registers, for matmul_*.cc only: a tile of
// R rows by P panels of two registers each, whose sums live in registers.
//
// One rule makes results independent of the number of rows, of threads and of blocking: an output
// element is one chain of multiply-adds over k = 0 .. K-1, from zero, to which the bias is added at
// the end. (Between blocks of K the unfinished chain waits in y, exactly.)
//
// Few rows: the weights stream through once, panel after panel: one stream is read fastest.
// More rows: x is copied once into blocks of rows, [K blocks][row blocks][word][rows]. Panel after
// panel, its weights go from memory to the first cache block by block of K, and all rows go over
// each block; x and the panel's outputs stay in the second cache meanwhile. Weights are one stream
// here too.
//
// A kind W of weights says:
//   W::Lanes               registers of kLanes floats (Ymm, Zmm) and what can be done with them
//   W::Stored              type of a stored weight
//   W::kStep               k in one 32-bit word of x: 1 float, or 2 bf16
//   W::kMaxRows, kSide     rows of a tile; panels side by side for one row
//   W::kDepth              K of a block of weights
//   W::Load(w, v)          the two registers of a panel's weights of one word
//   W::MultiplyAdd(x, w, sum)
//   W::Words(x)            8 words of a row of x, as a __m256
//   W::Word(x, n)          the word of n <= kStep values
//   W::Store(values, out)  values[kStep][kPanel] in the order that Load reads

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

constexpr int64_t kMostRows = 384;                   // rows of x that go over one block of weights
constexpr int64_t kInputBytes = int64_t{832} << 10;  // of x in the second cache

// The weights of a tile: from its first panel's first k on.
template <class W>
struct Weights {
  const typename W::Stored* w = nullptr;
  int64_t stride = 0;  // to the next panel
  // Fetched meanwhile, so many bytes further for each word; null: nothing.
  const char* next = nullptr;
  int64_t next_step = 0;
};

template <class W>
class VectorKernel {
  using Lanes = typename W::Lanes;
  using Vec = typename Lanes::Vec;
  using Stored = typename W::Stored;

 public:
  static constexpr int64_t kPanel = 2 * Lanes::kLanes;

  static int64_t PanelBytes(int64_t K) { return Words(K) * kWordBytes; }

  static void PackPanel(const PackParams& p, int64_t panel, char* out) {
    auto* w = reinterpret_cast<Stored*>(out);
    float values[kGroupSize][kPanel];
    for (int64_t k = 0; k < p.K; k += kGroupSize) {
      // One output after the other: rows of the source may lie a multiple of 4 KiB apart, where the
      // first cache holds lines of few of them at a time.
      for (int64_t j = 0; j < kPanel; ++j) {
        float row[kGroupSize];
        LoadSourceRow<kGroupSize>(p, panel * kPanel + j, k, row);
        for (int64_t i = 0; i < kGroupSize; ++i) values[i][j] = row[i];
      }
      for (int64_t i = 0; i < kGroupSize && k + i < p.K; i += W::kStep) {
        W::Store(values + i, w + (k + i) * kPanel);
      }
    }
  }

  // T rows are dealt evenly to the blocks.
  static int64_t Blocks(int64_t T) { return CeilDiv(T, W::kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) { return CeilDiv(T * Words(K), 16) * 64; }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kWordBytes / W::kStep, add = 0.02 * T * kPanel / W::kStep;
    return read > add ? read : add;
  }

  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t T = p.T, K = p.w.K, depth = Depth(T, K);
    auto* to = reinterpret_cast<float*>(packed);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = BlockBegin(T, block), rows = BlockBegin(T, block + 1) - row;
      for (int64_t k = 0; k < K; k += depth) {
        const int64_t here = Least(depth, K - k);
        PackBlock(p.x + row * p.x_stride + k, p.x_stride, rows, here,
                  to + Words(k) * T + row * Words(here));
      }
    }
  }

  static void RunPanels(const MatmulParams& p, const char* packed, int64_t begin, int64_t end) {
    const auto* x = reinterpret_cast<const float*>(packed);
    if (Blocks(p.T) == 1) {
      FewRows(p, x, begin, end);
    } else {
      ManyRows(p, x, begin, end);
    }
  }

  // All rows of some blocks on one panel over k in [k0, k0 + depth). x is that of the first block.
  // Each row block fetches its share of what w says is next.
  static void Column(const MatmulParams& p, const float* x, Weights<W> w, int64_t panel,
                     int64_t first, int64_t last, int64_t k0, int64_t depth) {
    const int64_t start = BlockBegin(p.T, first);
    w.next_step /= last - first;
    for (int64_t block = first; block < last; ++block, w.next += w.next_step * Words(depth)) {
      const int64_t row = BlockBegin(p.T, block), rows = BlockBegin(p.T, block + 1) - row;
      TileOf<W::kMaxRows>(rows, p, x + (row - start) * Words(depth), w, row, panel, k0, depth);
    }
  }

  static int64_t BlockBegin(int64_t T, int64_t block) { return T * block / Blocks(T); }
  static int64_t Words(int64_t k) { return CeilDiv(k, W::kStep); }

 private:
  static constexpr int64_t kWordBytes = kPanel * W::kStep * sizeof(Stored);

  // The K of one block of weights.
  static int64_t Depth(int64_t T, int64_t K) { return Blocks(T) == 1 ? K : Least(W::kDepth, K); }

  static Weights<W> PanelOf(const MatmulParams& p, int64_t panel, int64_t k, int64_t ahead) {
    const int64_t bytes = PanelBytes(p.w.K);
    const char* base = static_cast<const char*>(p.w.data) + panel * bytes;
    const auto* w = reinterpret_cast<const Stored*>(base) + k * kPanel;
    return {w, bytes / int64_t{sizeof(Stored)}, reinterpret_cast<const char*>(w) + ahead,
            kWordBytes};
  }

  // to[word][r] = words of x[r] for `depth` k and `rows` rows.
  static void PackBlock(const float* x, int64_t stride, int64_t rows, int64_t depth, float* to) {
    const int64_t words = Words(depth);
    int64_t i = 0;
    // Eight lanes are stored for each word and eight rows; what lies beyond the rows is overwritten
    // by the next word, so the last few words are left to the loop below.
    for (; (i + 7) * rows + CeilDiv(rows, 8) * 8 <= words * rows && (i + 8) * W::kStep <= depth;
         i += 8) {
      if (rows == 1) {
        _mm256_storeu_ps(to + i, W::Words(x + i * W::kStep));
        continue;
      }
      __m256 v[2][8];
      for (int64_t r = 0; r < CeilDiv(rows, 8) * 8; ++r) {
        v[r / 8][r % 8] = r < rows ? W::Words(x + r * stride + i * W::kStep) : _mm256_setzero_ps();
      }
      for (int64_t g = 0; g * 8 < rows; ++g) avx2::Transpose(v[g]);
      for (int64_t j = 0; j < 8; ++j) {
        for (int64_t g = 0; g * 8 < rows; ++g)
          _mm256_storeu_ps(to + (i + j) * rows + g * 8, v[g][j]);
      }
    }
    for (; i < words; ++i) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t k = i * W::kStep;
        to[i * rows + r] = W::Word(x + r * stride + k, Least(W::kStep, depth - k));
      }
    }
  }

  // `words` steps of R rows by P panels. x is [words][R]. The sums live in registers inside the
  // loop, for which the compiler must see every index as a constant.
  template <int R, int P>
  static inline void Multiply(const float* x, const Weights<W>& weights, int64_t words,
                              Vec (*sums)[R][2]) {
    Vec low_sums[P * R], high_sums[P * R];
#pragma GCC unroll 16
    for (int i = 0; i < P * R; ++i) {
      low_sums[i] = sums[i / R][i % R][0];
      high_sums[i] = sums[i / R][i % R][1];
    }
    const Stored* w = weights.w;
    const char* next = weights.next;
    for (int64_t i = 0; i < words; ++i) {
#pragma GCC unroll 8
      for (int q = 0; q < P; ++q) {
        Vec v[2];
        const char* ahead = next + q * weights.stride * int64_t{sizeof(Stored)};
        _mm_prefetch(ahead, kFarHint);
        W::Load(w + q * weights.stride, v);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec value = Lanes::Broadcast(x + r);
          low_sums[q * R + r] = W::MultiplyAdd(value, v[0], low_sums[q * R + r]);
          high_sums[q * R + r] = W::MultiplyAdd(value, v[1], high_sums[q * R + r]);
        }
        if constexpr (kWordBytes > 64) {
          // Behind the multiply-adds, where the compiler does not leave it by itself: two
          // prefetches in a row that wait for memory hold up the loads that follow (one row of fp32
          // by a sixth).
          __asm__("" : "+r"(ahead) : "v"(high_sums[q * R + R - 1]));
          _mm_prefetch(ahead + 64, kFarHint);
        }
      }
      x += R;
      w += W::kStep * kPanel;
      next += weights.next_step;
    }
#pragma GCC unroll 16
    for (int i = 0; i < P * R; ++i) {
      sums[i / R][i % R][0] = low_sums[i];
      sums[i / R][i % R][1] = high_sums[i];
    }
  }

  // Adds the bias and applies the activation to finished sums.
  static void Finish(const MatmulParams& p, int64_t o, Vec* v) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = o + half * Lanes::kLanes;
      if (p.bias != nullptr && at < p.w.O)
        v[half] = Lanes::Add(v[half], Lanes::LoadSome(p.bias + at, p.w.O - at));
      if (p.activation != Activation::kNone) v[half] = Lanes::Activate(v[half], p.activation);
    }
  }

  // The sums of a tile of y, R rows from `row` on by P panels from output o on: read from y, or
  // finished when `last` and written. kFull: all outputs exist; the last panel of a matrix may have
  // fewer.
  template <int R, int P, bool kFull>
  static void LoadTile(const MatmulParams& p, int64_t row, int64_t o, Vec (*sums)[R][2]) {
    for (int i = 0; i < P * R * 2; ++i) {
      const int64_t at = o + i / 2 / R * kPanel + i % 2 * Lanes::kLanes, r = i / 2 % R;
      const float* y = p.y + (row + r) * p.y_stride + at;
      Vec& v = sums[i / 2 / R][r][i % 2];
      v = kFull ? Lanes::Load(y) : (at < p.w.O ? Lanes::LoadSome(y, p.w.O - at) : Lanes::Zero());
    }
  }
  template <int R, int P, bool kFull>
  static void StoreTile(const MatmulParams& p, int64_t row, int64_t o, bool last,
                        Vec (*sums)[R][2]) {
    for (int i = 0; i < P * R * 2; ++i) {
      const int64_t from = o + i / 2 / R * kPanel, at = from + i % 2 * Lanes::kLanes;
      Vec* v = sums[i / 2 / R][i / 2 % R];
      if (i % 2 == 0 && last) Finish(p, from, v);
      float* y = p.y + (row + i / 2 % R) * p.y_stride + at;
      if (kFull) {
        Lanes::Store(y, v[i % 2]);
      } else if (at < p.w.O) {
        Lanes::StoreSome(y, p.w.O - at, v[i % 2]);
      }
    }
  }

  // One tile over k in [k0, k0 + depth). `x` is the tile's block.
  template <int R, int P>
  static void Tile(const MatmulParams& p, const float* x, const Weights<W>& w, int64_t row,
                   int64_t panel, int64_t k0, int64_t depth) {
    Vec sums[P][R][2];
    const int64_t o = panel * kPanel;
    const bool full = o + P * kPanel <= p.w.O, last = k0 + depth == p.w.K;
    if (k0 == 0) {
      for (int i = 0; i < P * R * 2; ++i) sums[i / 2 / R][i / 2 % R][i % 2] = Lanes::Zero();
    } else if (full) {
      LoadTile<R, P, true>(p, row, o, sums);
    } else {
      LoadTile<R, P, false>(p, row, o, sums);
    }
    Multiply<R, P>(x, w, Words(depth), sums);
    if (full && (!last || (p.bias == nullptr && p.activation == Activation::kNone))) {
      StoreTile<R, P, true>(p, row, o, false, sums);
    } else {
      StoreTile<R, P, false>(p, row, o, last, sums);
    }
  }

  template <int R>
  static void TileOf(int64_t rows, const MatmulParams& p, const float* x, const Weights<W>& w,
                     int64_t row, int64_t panel, int64_t k0, int64_t depth) {
    if constexpr (R > 0) {
      if (rows == R) return Tile<R, 1>(p, x, w, row, panel, k0, depth);
      TileOf<R - 1>(rows, p, x, w, row, panel, k0, depth);
    }
  }

  // All K of R rows on panels [begin, end), P at a time.
  template <int R>
  static void Sweep(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
    constexpr int P = R == 1 ? W::kSide : 1;
    for (; begin + P <= end; begin += P)
      Tile<R, P>(p, x, PanelOf(p, begin, 0, kFarAhead), 0, begin, 0, p.w.K);
    for (; begin < end; ++begin)
      Tile<R, 1>(p, x, PanelOf(p, begin, 0, kFarAhead), 0, begin, 0, p.w.K);
  }

  template <int R = W::kMaxRows>
  static void FewRows(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
    if (p.T == R) return Sweep<R>(p, x, begin, end);
    if constexpr (R > 1) FewRows<R - 1>(p, x, begin, end);
  }

  // body(panel, first, last, k, depth, x) for all panels, blocks of rows [first, last) and of K.
  template <typename Body>
  static void ForBlocks(const MatmulParams& p, const float* x, int64_t begin, int64_t end,
                        const Body& body) {
    const int64_t T = p.T, K = p.w.K, blocks = Blocks(T), depth = Depth(T, K);
    const int64_t groups = CeilDiv(T, kMostRows);
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t first = blocks * group / groups, last = blocks * (group + 1) / groups;
      const int64_t row = BlockBegin(T, first), rows = BlockBegin(T, last) - row;
      const int64_t reach = Least(K, CeilDiv(kInputBytes / 4, rows * Words(depth)) * depth);
      for (int64_t from = 0; from < K; from += reach) {
        for (int64_t panel = begin; panel < end; ++panel) {
          for (int64_t k = from; k < Least(from + reach, K); k += depth) {
            const int64_t here = Least(depth, K - k);
            body(panel, first, last, k, here, x + Words(k) * T + row * Words(here));
          }
        }
      }
    }
  }

  static void ManyRows(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
    ForBlocks(p, x, begin, end,
              [&p](int64_t panel, int64_t first, int64_t last, int64_t k, int64_t depth,
                   const float* block) {
                const int64_t ahead = Words(depth) * kWordBytes;
                Column(p, block, PanelOf(p, panel, k, ahead), panel, first, last, k, depth);
              });
  }
};

}  // namespace
}  // namespace skein::kernels
