#pragma once
// prepare, wkv7, norm_bonus_gate: per head of N channels, in vectors of L (Ymm or Zmm, lanes_*.h),
// for time_mix_*.cc only.

#include <xmmintrin.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/cpu/region.h"
#include "kernels/cpu/vector_loops.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

constexpr float kMinusExpMinusHalf = -0.60653065971263342f;

inline float SquareRoot(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

template <class L>
void PrepareHead(const PrepareParams& p, int64_t token, int64_t head) {
  using Vec = typename L::Vec;
  const int64_t c0 = head * p.N, at = token * p.H * p.N + c0;
  float* k = p.k + at;
  const float* k_k = p.k_k + c0;
  const float squares = SumOver<L>(p.N, [&](int64_t i, auto lanes) {
    const Vec kk = lanes.Load(k + i) * lanes.Load(k_k + i);
    return kk * kk;
  });
  float norm = SquareRoot(squares);
  if (norm < 1e-12f) norm = 1e-12f;
  const Vec scale = L::Splat(1.0f / norm), one = L::Splat(1.0f);
  ForVectors<L>(p.N, [&](int64_t i, auto lanes) {
    const Vec gate = L::Sigmoid(lanes.Load(p.a_raw + at + i));
    const Vec key = lanes.Load(k + i);
    const Vec kk = key * lanes.Load(k_k + i) * scale;
    const Vec decay = L::Splat(kMinusExpMinusHalf) * L::Sigmoid(lanes.Load(p.w + at + i));
    lanes.Store(p.w + at + i, L::Exp(decay));
    lanes.Store(p.a + at + i, L::Zero() - kk);
    lanes.Store(p.b + at + i, kk * gate);
    const Vec change = L::MultiplyAdd(gate - one, lanes.Load(p.k_a + c0 + i), one);
    lanes.Store(k + i, key * change);
    const Vec v = lanes.Load(p.v + at + i);
    if (p.v_raw == nullptr) {
      lanes.Store(p.v_first + at + i, v);
    } else {
      const Vec step = lanes.Load(p.v_first + at + i) - v;
      const Vec mix = L::Sigmoid(lanes.Load(p.v_raw + at + i));
      lanes.Store(p.v + at + i, L::MultiplyAdd(step, mix, v));
    }
  });
}

// The vectors of one token and head, and where its output goes.
struct WkvStep {
  const float *r, *w, *k, *v, *a, *b;
  float* y;
};

constexpr int64_t kWkvRows = 64;  // rows of a head's state that go over all tokens together

// s_a[q] = S a of row q, for R rows of the state, R at most L::kSums. kN > 0 fixes N, a multiple of
// L::kLanes.
template <class L, int R, int kN>
inline void ReadRows(const float* a, int64_t runtime_N, const float* state, float* s_a) {
  using Vec = typename L::Vec;
  const int64_t N = kN > 0 ? kN : runtime_N;
  Vec dots[L::kSums] = {};
  ForVectors<L>(N, [&](int64_t j, auto lanes) {
    const Vec a_j = lanes.Load(a + j);
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q)
      dots[q] = L::MultiplyAdd(lanes.Load(state + q * N + j), a_j, dots[q]);
  });
  float sums[L::kSums];
  L::SumEach(dots, sums);
  for (int q = 0; q < R; ++q) s_a[q] = sums[q];
}

// R rows of the state, from value channel i on, R at most half of L::kSums: read, changed and
// written once, and summed meanwhile for this token's y and, with kNext, for the next token's S a,
// which is added up as ReadRows does it.
template <class L, int R, int kN, bool kNext>
inline void UpdateRows(const WkvStep& s, const float* next_a, int64_t i, int64_t runtime_N,
                       float* state, float* s_a) {
  using Vec = typename L::Vec;
  constexpr int kHalf = L::kSums / 2;
  const int64_t N = kN > 0 ? kN : runtime_N;
  Vec sums[L::kSums] = {};
  ForVectors<L>(N, [&](int64_t j, auto lanes) {
    const Vec w = lanes.Load(s.w + j), b = lanes.Load(s.b + j), k = lanes.Load(s.k + j),
              r = lanes.Load(s.r + j);
    Vec a = L::Zero();
    if (kNext) a = lanes.Load(next_a + j);
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      Vec next = lanes.Load(state + q * N + j) * w;
      next = L::MultiplyAdd(L::Broadcast(s_a + q), b, next);
      next = L::MultiplyAdd(L::Broadcast(s.v + i + q), k, next);
      lanes.Store(state + q * N + j, next);
      sums[q] = L::MultiplyAdd(next, r, sums[q]);
      if (kNext) sums[kHalf + q] = L::MultiplyAdd(next, a, sums[kHalf + q]);
    }
  });
  float added[L::kSums];
  L::SumEach(sums, added);
  for (int q = 0; q < R; ++q) s.y[i + q] = added[q];
  if (kNext) {
    for (int q = 0; q < R; ++q) s_a[q] = added[kHalf + q];
  }
}

// `rows` rows from value channel `first` on over one token. state and s_a are those of row `first`.
template <class L, int kN, bool kNext>
void UpdateToken(const WkvStep& s, const float* next_a, int64_t first, int64_t rows, int64_t N,
                 float* state, float* s_a) {
  constexpr int R = L::kSums / 2;
  int64_t i = 0;
  for (; i + R <= rows; i += R)
    UpdateRows<L, R, kN, kNext>(s, next_a, first + i, N, state + i * N, s_a + i);
  if constexpr (kN == 0) {
    for (; i < rows; ++i)
      UpdateRows<L, 1, kN, kNext>(s, next_a, first + i, N, state + i * N, s_a + i);
  }
}

// All tokens of a row of the batch, tokens [t, end), for some rows of a head's state. kN > 0 fixes
// N, a multiple of L::kSums, L::kLanes and `rows`.
template <class L, int kN>
void RunRows(const Wkv7Params& p, int64_t t, int64_t end, int64_t head, int64_t first, int64_t rows,
             float* state) {
  const int64_t N = p.N, C = p.H * N, at = head * N;
  float s_a[kWkvRows];
  int64_t i = 0;
  for (; i + L::kSums <= rows; i += L::kSums)
    ReadRows<L, L::kSums, kN>(p.a + t * C + at, N, state + i * N, s_a + i);
  if constexpr (kN == 0) {
    for (; i < rows; ++i) ReadRows<L, 1, kN>(p.a + t * C + at, N, state + i * N, s_a + i);
  }
  for (; t < end; ++t) {
    const int64_t x = t * C + at;
    const WkvStep s = {p.r + x, p.w + x, p.k + x, p.v + x, p.a + x, p.b + x, p.y + x};
    if (t + 1 == end) {
      UpdateToken<L, kN, false>(s, nullptr, first, rows, N, state, s_a);
      return;
    }
    // The next token's lie C floats on, which no machine guesses.
    for (const float* next : {s.r, s.w, s.k, s.v, s.b}) {
      for (int64_t j = 0; j < N; j += 16) __builtin_prefetch(next + C + j);
    }
    UpdateToken<L, kN, true>(s, s.a + C, first, rows, N, state, s_a);
  }
}

template <class L>
void RunHead(const Wkv7Params& p, int64_t row, int64_t head) {
  const int64_t N = p.N, begin = p.batch.offsets[row], end = p.batch.offsets[row + 1];
  float* state = p.state.base + p.batch.slots[row] * p.state.stride + head * N * N;
  if (N == kWkvRows) return RunRows<L, kWkvRows>(p, begin, end, head, 0, N, state);
  for (int64_t first = 0; first < N; first += kWkvRows) {
    const int64_t rows = first + kWkvRows < N ? kWkvRows : N - first;
    RunRows<L, 0>(p, begin, end, head, first, rows, state + first * N);
  }
}

// Fetching and writing back a head's state costs about as much as this many tokens on it.
constexpr int64_t kStateCost = 3;

template <class L>
void NormHead(const NormBonusGateParams& p, int64_t token, int64_t head) {
  using Vec = typename L::Vec;
  const int64_t N = p.N, c0 = head * N, at = token * p.H * N + c0;
  const float* y = p.y + at;
  const float sum = SumOver<L>(N, [&](int64_t i, auto lanes) { return lanes.Load(y + i); });
  const float bonus = SumOver<L>(N, [&](int64_t i, auto lanes) {
    return lanes.Load(p.r + at + i) * lanes.Load(p.k + at + i) * lanes.Load(p.r_k + c0 + i);
  });
  const Vec mean = L::Splat(sum / static_cast<float>(N));
  const float squares = SumOver<L>(N, [&](int64_t i, auto lanes) {
    const Vec d = lanes.Keep(lanes.Load(y + i) - mean);
    return d * d;
  });
  const Vec scale = L::Splat(1.0f / SquareRoot(squares / static_cast<float>(N) + p.eps));
  const Vec weight = L::Splat(bonus);
  ForVectors<L>(N, [&](int64_t i, auto lanes) {
    const Vec d = (lanes.Load(y + i) - mean) * scale;
    const Vec norm =
        L::MultiplyAdd(d, lanes.Load(p.ln_weight + c0 + i), lanes.Load(p.ln_bias + c0 + i));
    const Vec out = L::MultiplyAdd(weight, lanes.Load(p.v + at + i), norm);
    lanes.Store(p.out + at + i, out * lanes.Load(p.g + at + i));
  });
}

// What a tier's functions of ops_*.h do.

template <class L>
void RunPrepare(const PrepareParams& p, Stream& stream) {
  ForRange(stream, int64_t{p.T} * p.H, GrainFor(2.0 * p.N), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) PrepareHead<L>(p, i / p.H, i % p.H);
  });
}

// heads(row, first, last) for heads [first, last) of each row of the batch, on all threads. Work is
// laid out on a line, row after row and head after head; a thread runs the heads that begin in its
// piece.
template <class Heads>
void ForHeads(const Wkv7Params& p, Stream& stream, const Heads& heads) {
  const int64_t total = (p.batch.num_tokens + kStateCost * p.batch.num_rows) * p.H;
  ForRange(stream, total, GrainFor(0.1 * p.N * p.N), [&](int64_t begin, int64_t end) {
    int64_t at = 0;
    for (int64_t row = 0; row < p.batch.num_rows && at < end; ++row) {
      const int64_t cost = p.batch.offsets[row + 1] - p.batch.offsets[row] + kStateCost;
      const ItemRange range = ItemsIn(at, cost, p.H, begin, end);
      if (range.first < range.last) heads(row, range.first, range.last);
      at += cost * p.H;
    }
  });
}

template <class L>
void RunWkv7(const Wkv7Params& p, Stream& stream) {
  ForHeads(p, stream, [&p](int64_t row, int64_t first, int64_t last) {
    for (int64_t head = first; head < last; ++head) RunHead<L>(p, row, head);
  });
}

template <class L>
void RunNormBonusGate(const NormBonusGateParams& p, Stream& stream) {
  ForRange(stream, int64_t{p.T} * p.H, GrainFor(0.6 * p.N), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) NormHead<L>(p, i / p.H, i % p.H);
  });
}

}  // namespace
}  // namespace skein::kernels
