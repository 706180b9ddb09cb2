#pragma once
// The innermost part of the matmul, for matmul_avx2.cc only: tiles of up to 6 rows by 16 outputs,
// or one row by six panels of 16, whose sums live in registers.

#include <cstdint>

#include "kernels/cpu/simd_avx2.h"
#include "kernels/ops.h"

namespace skein::kernels::avx2 {
namespace {

constexpr int64_t kPanel = 16;       // outputs of a panel
constexpr int64_t kMaxRows = 6;      // rows of a tile: 12 of the 16 registers accumulate
constexpr int64_t kAhead = 4096;     // bytes that one stream of weights is fetched ahead
constexpr auto kHint = _MM_HINT_T0;  // an enum of GCC, an int of clang

int64_t Panels(int64_t O) { return (O + kPanel - 1) / kPanel; }
int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// How a panel's 16 weights of one k are stored and widened: outputs 0..7 to `low`, 8..15 to `high`.
struct WideF32 {
  using Type = float;
  static void Load(const float* w, __m256* low, __m256* high) {
    *low = _mm256_load_ps(w);
    *high = _mm256_load_ps(w + 8);
  }
};
// Output j in the low half of 32-bit word j, output 8 + j in the high half: a shift and a mask
// widen them.
struct WideBF16 {
  using Type = uint16_t;
  static void Load(const uint16_t* w, __m256* low, __m256* high) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    *high = _mm256_castsi256_ps(
        _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
};

__m256 Activate(__m256 v, Activation activation) {
  switch (activation) {
    case Activation::kTanh:
      return Tanh(v);
    case Activation::kSigmoid:
      return Sigmoid(v);
    case Activation::kReluSquared: {
      const __m256 positive = _mm256_max_ps(_mm256_setzero_ps(), v);  // this order keeps NaN
      return _mm256_mul_ps(positive, positive);
    }
    case Activation::kNone:
      break;
  }
  return v;
}

// A panel's 16 outputs of one row of y; the last panel of a matrix may have fewer.
void LoadOutputs(const float* y, int64_t outputs, __m256* v) {
  if (outputs >= kPanel) {
    v[0] = _mm256_loadu_ps(y);
    v[1] = _mm256_loadu_ps(y + 8);
    return;
  }
  v[0] = _mm256_maskload_ps(y, TailMask(Least(outputs, 8)));
  v[1] = outputs > 8 ? _mm256_maskload_ps(y + 8, TailMask(outputs - 8)) : _mm256_setzero_ps();
}

void StoreOutputs(float* y, int64_t outputs, const __m256* v) {
  if (outputs >= kPanel) {
    _mm256_storeu_ps(y, v[0]);
    _mm256_storeu_ps(y + 8, v[1]);
    return;
  }
  _mm256_maskstore_ps(y, TailMask(Least(outputs, 8)), v[0]);
  if (outputs > 8) _mm256_maskstore_ps(y + 8, TailMask(outputs - 8), v[1]);
}

// Adds the bias and applies the activation to finished sums.
void Finish(const MatmulParams& p, int64_t panel, __m256* v) {
  if (p.bias != nullptr) {
    __m256 bias[2];
    LoadOutputs(p.bias + panel * kPanel, p.w.O - panel * kPanel, bias);
    v[0] = _mm256_add_ps(v[0], bias[0]);
    v[1] = _mm256_add_ps(v[1], bias[1]);
  }
  if (p.activation == Activation::kNone) return;
  v[0] = Activate(v[0], p.activation);
  v[1] = Activate(v[1], p.activation);
}

// K steps of R rows by P panels. x is [K][R]; panel q's weights begin at w + q * panel_stride, and
// those `ahead` elements further on are fetched into the cache meanwhile. The sums live in
// registers inside the loop, for which the compiler must see every index as a constant.
template <int R, int P, typename Wide>
inline void Multiply(const float* x, const typename Wide::Type* w, int64_t panel_stride, int64_t K,
                     int64_t ahead, __m256 (*sums)[R][2]) {
  __m256 low_sums[P * R], high_sums[P * R];
#pragma GCC unroll 8
  for (int i = 0; i < P * R; ++i) {
    low_sums[i] = sums[i / R][i % R][0];
    high_sums[i] = sums[i / R][i % R][1];
  }
  for (int64_t k = 0; k < K; ++k) {
#pragma GCC unroll 8
    for (int q = 0; q < P; ++q) {
      __m256 low, high;
      _mm_prefetch(reinterpret_cast<const char*>(w + q * panel_stride + ahead), kHint);
      Wide::Load(w + q * panel_stride, &low, &high);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m256 value = _mm256_broadcast_ss(x + r);
        low_sums[q * R + r] = _mm256_fmadd_ps(value, low, low_sums[q * R + r]);
        high_sums[q * R + r] = _mm256_fmadd_ps(value, high, high_sums[q * R + r]);
      }
    }
    x += R;
    w += kPanel;
  }
#pragma GCC unroll 8
  for (int i = 0; i < P * R; ++i) {
    sums[i / R][i % R][0] = low_sums[i];
    sums[i / R][i % R][1] = high_sums[i];
  }
}

// One tile of y: R rows from `row` on, P panels from `panel` on, over k in [k0, k0 + depth). `x` is
// the tile's block.
template <int R, int P, typename Wide>
void Tile(const MatmulParams& p, const float* x, int64_t row, int64_t panel, int64_t k0,
          int64_t depth) {
  const int64_t K = p.w.K, stride = K * kPanel;
  const auto* w = static_cast<const typename Wide::Type*>(p.w.data) + panel * stride + k0 * kPanel;
  __m256 sums[P][R][2];
  for (int q = 0; q < P; ++q) {
    for (int r = 0; r < R; ++r) {
      sums[q][r][0] = sums[q][r][1] = _mm256_setzero_ps();
      if (k0 == 0) continue;
      const int64_t o = (panel + q) * kPanel;
      LoadOutputs(p.y + (row + r) * p.y_stride + o, p.w.O - o, sums[q][r]);
    }
  }
  // Few rows stream through the weights; many stay on a block, and the next one is the next
  // panel's.
  const int64_t ahead = p.T > kMaxRows ? stride : kAhead / static_cast<int64_t>(sizeof *w);
  Multiply<R, P, Wide>(x, w, stride, depth, ahead, sums);
  for (int q = 0; q < P; ++q) {
    const int64_t o = (panel + q) * kPanel;
    for (int r = 0; r < R; ++r) {
      if (k0 + depth == K) Finish(p, panel + q, sums[q][r]);
      StoreOutputs(p.y + (row + r) * p.y_stride + o, p.w.O - o, sums[q][r]);
    }
  }
}

template <typename Wide>
void TileOf(int64_t rows, const MatmulParams& p, const float* x, int64_t row, int64_t panel,
            int64_t k0, int64_t depth) {
  switch (rows) {
    case 1:
      return Tile<1, 1, Wide>(p, x, row, panel, k0, depth);
    case 2:
      return Tile<2, 1, Wide>(p, x, row, panel, k0, depth);
    case 3:
      return Tile<3, 1, Wide>(p, x, row, panel, k0, depth);
    case 4:
      return Tile<4, 1, Wide>(p, x, row, panel, k0, depth);
    case 5:
      return Tile<5, 1, Wide>(p, x, row, panel, k0, depth);
    default:
      return Tile<6, 1, Wide>(p, x, row, panel, k0, depth);
  }
}

// All K of R rows on panels [begin, end), P at a time.
template <int R, int P, typename Wide>
void Sweep(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  for (; begin + P <= end; begin += P) Tile<R, P, Wide>(p, x, 0, begin, 0, p.w.K);
  for (; begin < end; ++begin) Tile<R, 1, Wide>(p, x, 0, begin, 0, p.w.K);
}

template <typename Wide>
void MultiplyFewRows(const MatmulParams& p, const float* x, int64_t begin, int64_t end) {
  switch (p.T) {
    case 1:
      return Sweep<1, 6, Wide>(p, x, begin, end);
    case 2:
      return Sweep<2, 1, Wide>(p, x, begin, end);
    case 3:
      return Sweep<3, 1, Wide>(p, x, begin, end);
    case 4:
      return Sweep<4, 1, Wide>(p, x, begin, end);
    case 5:
      return Sweep<5, 1, Wide>(p, x, begin, end);
    default:
      return Sweep<6, 1, Wide>(p, x, begin, end);
  }
}

}  // namespace
}  // namespace skein::kernels::avx2
