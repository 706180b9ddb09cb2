#pragma once
// The matmul kernel of int8 weights in vector registers, for matmul_*.cc only. The 64 k of a row
// that share a scale of weights are whole numbers with a unit of their own (number_format.h):
// 16 bits of fixed point with int8 weights alone (ToFixedPoint), 8 bits with W8A8 (StepOf). Their
// products with weights are whole numbers and their sums exact, so an output element is a chain
// over groups of 64 k, each times its unit and its scale, whatever the number of rows or threads:
// the same bits on every tier.
//
// A backend B says, beside what lanes_*.h says of its registers:
//   B::kType                 kI8 or kI8A8
//   B::Ints                  a register of kLanes whole numbers
//   B::X                     int8_t or int16_t: what x is multiplied as; a 32-bit word holds kStep
//   B::kMaxRows              rows of a tile
//   B::kOffset               what Store adds to a weight
//   B::Store(q), B::Load(w, v)  a weight as stored; the two registers of a word's weights
//   B::Splat(word)           a word in every lane
//   B::Dot(sum, w, x)        sum + the products of a word
//   B::Floats(sum)
//   B::Quantize(x, inverse, q)  kI8A8: 64 numbers x * inverse, to the nearest

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

template <class B>
class Int8VectorKernel {
  using Vec = typename B::Vec;
  using Ints = typename B::Ints;
  using X = typename B::X;
  static constexpr int64_t kLanes = B::kLanes, kStep = 4 / sizeof(X), kWords = kGroupSize / kStep;

 public:
  static constexpr int64_t kPanel = 2 * kLanes;

 private:
  struct Weights {            // one group of a panel
    uint16_t scales[kPanel];  // bf16
    int8_t q[kWords][kPanel][kStep];
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
          weights->q[i / kStep][j][i % kStep] = B::Store(q[i]);
      }
    }
  }

  // T rows are dealt evenly to the blocks.
  static int64_t Blocks(int64_t T) { return CeilDiv(T, B::kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) {
    return CeilDiv(T * Groups(K) * kRowWords * 4, 64) * 64;
  }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel, add = 0.02 * T * kPanel / kStep;
    return read > add ? read : add;
  }

  // [block][group]: units, starts of sums, and words, of each [rows].
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = BlockBegin(p.T, block), rows = BlockBegin(p.T, block + 1) - row;
      auto* to = reinterpret_cast<int32_t*>(packed) + row * Groups(K) * kRowWords;
      for (int64_t k = 0; k < K; k += kGroupSize, to += rows * kRowWords) {
        PackGroup(p.x + row * p.x_stride + k, p.x_stride, rows, Least(kGroupSize, K - k), to);
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
        const int64_t share = kPanel * kStep / blocks;
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

  // Makes 64 k of a row whole numbers, in kWords words; returns their unit.
  static float ToWholeNumbers(const float* x, int64_t depth, float* words) {
    X values[kGroupSize];
    float unit;
    if constexpr (B::kType == DType::kI8) {
      unit = ToFixedPoint(x, depth, values);
    } else {
      int8_t q[kGroupSize];
      unit = QuantizeInput<B>(x, depth, q);
      for (int64_t i = 0; i < kGroupSize; ++i) values[i] = q[i];
    }
    std::memcpy(words, values, sizeof(values));
    return unit;
  }

  // One group: to = units, starts of sums, and words, of each [rows].
  static void PackGroup(const float* x, int64_t stride, int64_t rows, int64_t depth, int32_t* to) {
    alignas(32) float words[B::kMaxRows][kWords];
    for (int64_t r = 0; r < rows; ++r) {
      const float unit = ToWholeNumbers(x + r * stride, depth, words[r]);
      std::memcpy(to + r, &unit, sizeof(unit));
      int32_t sum = 0;
      if (B::kOffset != 0) {
        X values[kGroupSize];
        std::memcpy(values, words[r], sizeof(values));
        for (const X v : values) sum += v;
      }
      to[rows + r] = -B::kOffset * sum;
    }
    TransposeWords(words, rows, reinterpret_cast<float*>(to + 2 * rows));
  }

  // to[word][rows] = words[rows][word].
  static void TransposeWords(const float (*words)[kWords], int64_t rows, float* to) {
    if (rows == 1) return static_cast<void>(std::memcpy(to, words, sizeof(*words)));
    for (int64_t i = 0; i < kWords; i += 8) {
      for (int64_t r = 0; r < rows; r += 8) {
        __m256 v[8];
        for (int64_t j = 0; j < 8; ++j)
          v[j] = r + j < rows ? _mm256_load_ps(words[r + j] + i) : _mm256_setzero_ps();
        avx2::Transpose(v);
        for (int64_t j = 0; j < 8; ++j) Ymm::StoreSome(to + (i + j) * rows + r, rows - r, v[j]);
      }
    }
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
      if constexpr (kPanel * kStep > 64) _mm_prefetch(next + 64, kFarHint);
      next += share;
      Ints v[2];
      B::Load(&w.q[i][0][0], v);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Ints value = B::Splat(x[r]);
        low[r] = B::Dot(low[r], v[0], value);
        high[r] = B::Dot(high[r], v[1], value);
        // The compiler would make all products before it adds them, and keep sums in memory.
        __asm__("" : "+v"(low[r]), "+v"(high[r]));
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
