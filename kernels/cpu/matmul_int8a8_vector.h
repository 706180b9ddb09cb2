#pragma once
// The matmul kernel of int8 weights and int8 x (W8A8) in vector registers, for matmul_*.cc only.
// The 64 k of a row that share a scale of weights share a unit of x too (StepOf in
// number_format.h); their products are whole numbers and exact, so an output element is a chain
// over groups of 64 k, each times its unit and its scale, whatever the number of rows or threads.
//
// A backend B says, beside what lanes_*.h says of its registers:
//   B::Ints                  a register of kLanes whole numbers
//   B::kStep                 k in a 32-bit word of x
//   B::kMaxRows              rows of a tile
//   B::kOffset               what Store adds to a weight
//   B::Store(q), B::Load(w, v)  a weight as stored; the two registers of a word's weights
//   B::Word(q)               kStep numbers of x
//   B::Dot(sum, w, x)        sum + the products of a word
//   B::Floats(sum)
//   B::Quantize(x, inverse, q)  64 numbers x * inverse, to the nearest

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

template <class B>
class A8VectorKernel {
  using Vec = typename B::Vec;
  using Ints = typename B::Ints;
  static constexpr int64_t kLanes = B::kLanes, kWords = kGroupSize / B::kStep;

 public:
  static constexpr int64_t kPanel = 2 * kLanes;

 private:
  struct Weights {            // one group of a panel
    uint16_t scales[kPanel];  // bf16
    int8_t q[kWords][kPanel][B::kStep];
  };

 public:
  static int64_t PanelBytes(int64_t K) { return Groups(K) * int64_t{sizeof(Weights)}; }

  static void PackPanel(const PackParams& p, int64_t panel, char* out) {
    for (int64_t group = 0; group < Groups(p.K); ++group) {
      auto* weights = reinterpret_cast<Weights*>(out) + group;
      for (int64_t j = 0; j < kPanel; ++j) {
        int8_t q[kGroupSize];
        weights->scales[j] = QuantizeWeights(p, panel * kPanel + j, group * kGroupSize, q);
        for (int64_t i = 0; i < kGroupSize; ++i)
          weights->q[i / B::kStep][j][i % B::kStep] = B::Store(q[i]);
      }
    }
  }

  // T rows are dealt evenly to the blocks.
  static int64_t Blocks(int64_t T) { return CeilDiv(T, B::kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) {
    return CeilDiv(T * Groups(K) * kRowWords * 4, 64) * 64;
  }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel, add = 0.02 * T * kPanel / B::kStep;
    return read > add ? read : add;
  }

  // [block][group]: units, starts of sums, and words, of each [rows].
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = BlockBegin(p.T, block), rows = BlockBegin(p.T, block + 1) - row;
      auto* to = reinterpret_cast<int32_t*>(packed) + row * Groups(K) * kRowWords;
      for (int64_t k = 0; k < K; k += kGroupSize, to += rows * kRowWords) {
        for (int64_t r = 0; r < rows; ++r) {
          PackGroup(p.x + (row + r) * p.x_stride + k, Least(kGroupSize, K - k), rows, to + r);
        }
      }
    }
  }

  static void RunPanels(const MatmulParams& p, const char* packed, int64_t begin, int64_t end) {
    const int64_t bytes = PanelBytes(p.w.K), blocks = Blocks(p.T);
    for (int64_t panel = begin; panel < end; ++panel) {
      const char* w = static_cast<const char*>(p.w.data) + panel * bytes;
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t row = BlockBegin(p.T, block), rows = BlockBegin(p.T, block + 1) - row;
        // Each block fetches its share of every group of the next panel, one block what comes soon.
        const int64_t share = kPanel * B::kStep / blocks;
        const char* next = blocks == 1 ? w + kFarAhead : w + bytes + block * kWords * share;
        TileOf<B::kMaxRows>(
            rows, p, reinterpret_cast<const int32_t*>(packed) + row * Groups(p.w.K) * kRowWords,
            reinterpret_cast<const Weights*>(w), row, panel, next, share);
      }
    }
  }

 private:
  static constexpr int64_t kRowWords = kWords + 2;

  static int64_t Groups(int64_t K) { return CeilDiv(K, kGroupSize); }
  static int64_t BlockBegin(int64_t T, int64_t block) { return T * block / Blocks(T); }

  // One group of one row; its words lie `stride` apart.
  static void PackGroup(const float* x, int64_t depth, int64_t stride, int32_t* to) {
    int8_t q[kGroupSize];
    const float unit = QuantizeInput<B>(x, depth, q);
    std::memcpy(to, &unit, sizeof(unit));
    int32_t sum = 0;
    for (const int8_t v : q) sum += v;
    to[stride] = -B::kOffset * sum;
    for (int64_t i = 0; i < kWords; ++i) to[(2 + i) * stride] = B::Word(q + i * B::kStep);
  }

  template <int R>
  static void TileOf(int64_t rows, const MatmulParams& p, const int32_t* x, const Weights* w,
                     int64_t row, int64_t panel, const char* next, int64_t share) {
    if constexpr (R > 0) {
      if (rows == R) return Tile<R>(p, x, w, row, panel, next, share);
      TileOf<R - 1>(rows, p, x, w, row, panel, next, share);
    }
  }

  // R rows by one panel, over all of K.
  template <int R>
  static void Tile(const MatmulParams& p, const int32_t* x, const Weights* w, int64_t row,
                   int64_t panel, const char* next, int64_t share) {
    Vec totals[R][2];
    for (auto& total : totals) total[0] = total[1] = B::Zero();
    const int64_t groups = Groups(p.w.K);
    for (int64_t group = 0; group < groups; ++group, ++w, x += R * kRowWords) {
      // The totals stay in memory: the registers are for the sums of the loop inside.
      __asm__ volatile("" : : "r"(totals) : "memory");
      Ints sums[R][2];
      Multiply<R>(x + R, *w, next + group * int64_t{sizeof(Weights)}, share, sums);
      for (int half = 0; half < 2; ++half) {
        const Vec scale = B::WidenBF16(w->scales + half * kLanes);
        for (int r = 0; r < R; ++r) {
          const Vec unit = B::Broadcast(reinterpret_cast<const float*>(x) + r);
          totals[r][half] = B::MultiplyAdd(B::Floats(sums[r][half]), unit * scale, totals[r][half]);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int half = 0; half < 2; ++half)
        Finish(p, row + r, panel * kPanel + half * kLanes, totals[r][half]);
    }
  }

  // One group. x: the starts of the sums, then [word][R].
  template <int R>
  static inline void Multiply(const int32_t* x, const Weights& w, const char* next, int64_t share,
                              Ints (*sums)[2]) {
    Ints low[R], high[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) low[r] = high[r] = B::Splat(x[r]);
    for (int64_t i = 0; i < kWords; ++i) {
      x += R;
      _mm_prefetch(next, kFarHint);
      if constexpr (kPanel * B::kStep > 64) _mm_prefetch(next + 64, kFarHint);
      next += share;
      Ints v[2];
      B::Load(&w.q[i][0][0], v);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Ints value = B::Splat(x[r]);
        low[r] = B::Dot(low[r], v[0], value);
        high[r] = B::Dot(high[r], v[1], value);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      sums[r][0] = low[r];
      sums[r][1] = high[r];
    }
  }

  static void Finish(const MatmulParams& p, int64_t row, int64_t o, Vec v) {
    if (o >= p.w.O) return;
    const int64_t n = p.w.O - o;
    if (p.bias != nullptr) v = B::Add(v, B::LoadSome(p.bias + o, n));
    if (p.activation != Activation::kNone) v = B::Activate(v, p.activation);
    B::StoreSome(p.y + row * p.y_stride + o, n, v);
  }
};

}  // namespace
}  // namespace skein::kernels
