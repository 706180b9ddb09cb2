// prepare, wkv7, norm_bonus_gate: per head of N channels.

#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/simd_avx2.h"

namespace skein::kernels::avx2 {
namespace {

constexpr float kMinusExpMinusHalf = -0.60653065971263342f;

void PrepareHead(const PrepareParams& p, int64_t token, int64_t head) {
  const int64_t c0 = head * p.N, at = token * p.H * p.N + c0;
  float* k = p.k + at;
  const float* k_k = p.k_k + c0;
  const float squares = SumOver(p.N, [&](int64_t i, auto lanes) {
    const __m256 kk = _mm256_mul_ps(lanes.Load(k + i), lanes.Load(k_k + i));
    return _mm256_mul_ps(kk, kk);
  });
  float norm = _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(squares)));
  if (norm < 1e-12f) norm = 1e-12f;
  const __m256 scale = _mm256_set1_ps(1.0f / norm), one = _mm256_set1_ps(1.0f);
  ForVectors(p.N, [&](int64_t i, auto lanes) {
    const __m256 gate = Sigmoid(lanes.Load(p.a_raw + at + i));
    const __m256 key = lanes.Load(k + i);
    const __m256 kk = _mm256_mul_ps(_mm256_mul_ps(key, lanes.Load(k_k + i)), scale);
    const __m256 decay =
        _mm256_mul_ps(_mm256_set1_ps(kMinusExpMinusHalf), Sigmoid(lanes.Load(p.w + at + i)));
    lanes.Store(p.w + at + i, Exp(decay));
    lanes.Store(p.a + at + i, _mm256_sub_ps(_mm256_setzero_ps(), kk));
    lanes.Store(p.b + at + i, _mm256_mul_ps(kk, gate));
    const __m256 change =
        _mm256_fmadd_ps(_mm256_sub_ps(gate, one), lanes.Load(p.k_a + c0 + i), one);
    lanes.Store(k + i, _mm256_mul_ps(key, change));
    const __m256 v = lanes.Load(p.v + at + i);
    if (p.v_raw == nullptr) {
      lanes.Store(p.v_first + at + i, v);
    } else {
      const __m256 step = _mm256_sub_ps(lanes.Load(p.v_first + at + i), v);
      lanes.Store(p.v + at + i, _mm256_fmadd_ps(step, Sigmoid(lanes.Load(p.v_raw + at + i)), v));
    }
  });
}

// The vectors of one token and head, and where its output goes.
struct Step {
  const float *r, *w, *k, *v, *a, *b;
  float* y;
};

// R (1..4) rows of a head's state, from value channel i on: both sums of a row need the whole row,
// so the row is read for S a, then read, changed and summed for S r. kN > 0 fixes N, a multiple
// of 8.
template <int R, int kN>
inline void UpdateRows(const Step& s, int64_t i, int64_t runtime_N, float* state) {
  const int64_t N = kN > 0 ? kN : runtime_N;
  __m256 dots[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  ForVectors(N, [&](int64_t j, auto lanes) {
    const __m256 a = lanes.Load(s.a + j);
    for (int q = 0; q < R; ++q)
      dots[q] = _mm256_fmadd_ps(lanes.Load(state + q * N + j), a, dots[q]);
  });
  alignas(16) float s_a[4];
  _mm_store_ps(s_a, Sum4(dots[0], dots[1], dots[2], dots[3]));
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  ForVectors(N, [&](int64_t j, auto lanes) {
    const __m256 w = lanes.Load(s.w + j), b = lanes.Load(s.b + j), k = lanes.Load(s.k + j),
                 r = lanes.Load(s.r + j);
    for (int q = 0; q < R; ++q) {
      __m256 next = _mm256_mul_ps(lanes.Load(state + q * N + j), w);
      next = _mm256_fmadd_ps(_mm256_broadcast_ss(s_a + q), b, next);
      next = _mm256_fmadd_ps(_mm256_broadcast_ss(s.v + i + q), k, next);
      lanes.Store(state + q * N + j, next);
      sums[q] = _mm256_fmadd_ps(next, r, sums[q]);
    }
  });
  alignas(16) float y[4];
  _mm_store_ps(y, Sum4(sums[0], sums[1], sums[2], sums[3]));
  for (int q = 0; q < R; ++q) s.y[i + q] = y[q];
}

// One token of one head; state is [N, N]. kN > 0 is a multiple of 8.
template <int kN>
void UpdateHead(const Step& s, int64_t runtime_N, float* state) {
  const int64_t N = kN > 0 ? kN : runtime_N;
  int64_t i = 0;
  for (; i + 4 <= N; i += 4) UpdateRows<4, kN>(s, i, N, state + i * N);
  if constexpr (kN == 0) {
    for (; i < N; ++i) UpdateRows<1, kN>(s, i, N, state + i * N);
  }
}

void RunHead(const Wkv7Params& p, int64_t row, int64_t head) {
  const int64_t N = p.N, C = p.H * N;
  float* state = p.state.base + p.batch.slots[row] * p.state.stride + head * N * N;
  for (int64_t t = p.batch.offsets[row]; t < p.batch.offsets[row + 1]; ++t) {
    const int64_t at = t * C + head * N;
    const Step s = {p.r + at, p.w + at, p.k + at, p.v + at, p.a + at, p.b + at, p.y + at};
    if (N == 64) {
      UpdateHead<64>(s, N, state);
    } else {
      UpdateHead<0>(s, N, state);
    }
  }
}

// Fetching and writing back a head's state costs about as much as this many tokens on it.
constexpr int64_t kStateCost = 3;

void NormHead(const NormBonusGateParams& p, int64_t token, int64_t head) {
  const int64_t N = p.N, c0 = head * N, at = token * p.H * N + c0;
  const float* y = p.y + at;
  const float sum = SumOver(N, [&](int64_t i, auto lanes) { return lanes.Load(y + i); });
  const float bonus = SumOver(N, [&](int64_t i, auto lanes) {
    return _mm256_mul_ps(_mm256_mul_ps(lanes.Load(p.r + at + i), lanes.Load(p.k + at + i)),
                         lanes.Load(p.r_k + c0 + i));
  });
  const __m256 mean = _mm256_set1_ps(sum / static_cast<float>(N));
  const float squares = SumOver(N, [&](int64_t i, auto lanes) {
    const __m256 d = lanes.Keep(_mm256_sub_ps(lanes.Load(y + i), mean));
    return _mm256_mul_ps(d, d);
  });
  const __m256 scale = _mm256_set1_ps(InverseSqrt(squares / static_cast<float>(N) + p.eps));
  const __m256 weight = _mm256_set1_ps(bonus);
  ForVectors(N, [&](int64_t i, auto lanes) {
    const __m256 d = _mm256_mul_ps(_mm256_sub_ps(lanes.Load(y + i), mean), scale);
    const __m256 norm =
        _mm256_fmadd_ps(d, lanes.Load(p.ln_weight + c0 + i), lanes.Load(p.ln_bias + c0 + i));
    const __m256 out = _mm256_fmadd_ps(weight, lanes.Load(p.v + at + i), norm);
    lanes.Store(p.out + at + i, _mm256_mul_ps(out, lanes.Load(p.g + at + i)));
  });
}

}  // namespace

void Prepare(const PrepareParams& p, Stream& stream) {
  ForRange(stream, int64_t{p.T} * p.H, GrainFor(2.0 * p.N), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) PrepareHead(p, i / p.H, i % p.H);
  });
}

void Wkv7(const Wkv7Params& p, Stream& stream) {
  // Work is laid out on a line, row after row and head after head; a thread runs the heads that
  // begin in its piece.
  const int64_t total = (p.batch.num_tokens + kStateCost * p.batch.num_rows) * p.H;
  ForRange(stream, total, GrainFor(0.1 * p.N * p.N), [&p](int64_t begin, int64_t end) {
    int64_t at = 0;
    for (int64_t row = 0; row < p.batch.num_rows && at < end; ++row) {
      const int64_t cost = p.batch.offsets[row + 1] - p.batch.offsets[row] + kStateCost;
      const ItemRange heads = ItemsIn(at, cost, p.H, begin, end);
      for (int64_t head = heads.first; head < heads.last; ++head) RunHead(p, row, head);
      at += cost * p.H;
    }
  });
}

void NormBonusGate(const NormBonusGateParams& p, Stream& stream) {
  ForRange(stream, int64_t{p.T} * p.H, GrainFor(0.6 * p.N), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) NormHead(p, i / p.H, i % p.H);
  });
}

}  // namespace skein::kernels::avx2
