// The row operators of plain_rows.cc in AVX2: the same formulae, eight channels at a time.

#include <cmath>

#include "kernels/train/avx2.h"
#include "kernels/train/scratch.h"
#include "kernels/train/simd_avx2.h"

namespace skein::kernels::train {
namespace {

struct Statistics {
  float mean = 0, rstd = 0;
};

Statistics RowStatistics(const float* x, int64_t n, float eps) {
  Statistics s;
  s.mean = SumOver(n, [&](int64_t i, const Lanes& l) { return l.Load(x + i); }) / n;
  const __m256 mean = Broadcast(s.mean);
  const float squares = SumOver(n, [&](int64_t i, const Lanes& l) {
    const __m256 d = l.Load(x + i) - mean;
    return d * d;
  });
  s.rstd = 1 / std::sqrt(squares / n + eps);
  return s;
}

void Clear(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 0;
}

bool HasPrevious(const bool* reset, int64_t T, int64_t row) {
  return row % T != 0 && !(reset != nullptr && reset[row]);
}

// sum = x + delta of one row; `out` may be scratch.
void AddRow(const AddNormMixForward<float>& p, int64_t row, float* out) {
  const float* x = p.x + row * p.C;
  const float* delta = p.delta != nullptr ? p.delta + row * p.C : nullptr;
  for (int64_t c = 0; c < p.C; c += 8) {
    const Lanes l(p.C - c);
    l.Store(out + c, delta != nullptr ? l.Load(x + c) + l.Load(delta + c) : l.Load(x + c));
  }
}

void NormRow(const AddNormMixForward<float>& p, const float* x, Statistics s, float* n) {
  const __m256 mean = Broadcast(s.mean), rstd = Broadcast(s.rstd);
  for (int64_t c = 0; c < p.C; c += 8) {
    const Lanes l(p.C - c);
    l.Store(n + c, (l.Load(x + c) - mean) * rstd * l.Load(p.ln_weight + c) + l.Load(p.ln_bias + c));
  }
}

void MixRow(const AddNormMixForward<float>& p, int64_t row, const float* n, const float* prev) {
  const int64_t C = p.C, R = p.B * p.T;
  for (int64_t m = 0; m < p.M; ++m) {
    float* out = p.mixed + (m * R + row) * C;
    const float* mix = p.mix + m * C;
    for (int64_t c = 0; c < C; c += 8) {
      const Lanes l(C - c);
      const __m256 now = l.Load(n + c);
      l.Store(out + c, now + (l.Load(prev + c) - now) * l.Load(mix + c));
    }
  }
}

// d_x = rstd * (d_xhat - mean(d_xhat) - xhat * mean(d_xhat * xhat)) [+ add], over n channels.
void NormGrad(const float* xhat, const float* d_xhat, float rstd, int64_t n, const float* add,
              float* d_x) {
  const float mean_d =
      SumOver(n, [&](int64_t i, const Lanes& l) { return l.Load(d_xhat + i); }) / n;
  const float mean_dx =
      SumOver(n, [&](int64_t i, const Lanes& l) { return l.Load(d_xhat + i) * l.Load(xhat + i); }) /
      n;
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes l(n - i);
    __m256 d = Broadcast(rstd) *
               (l.Load(d_xhat + i) - Broadcast(mean_d) - l.Load(xhat + i) * Broadcast(mean_dx));
    if (add != nullptr) d += l.Load(add + i);
    l.Store(d_x + i, d);
  }
}

// The mixes' part of one row of the backward pass: xhat and d_xhat of the row, sums into `partial`.
void MixGrad(const AddNormMixBackward<float>& p, int64_t row, float* partial, float* xhat,
             float* d_xhat) {
  const int64_t C = p.C, M = p.M;
  const bool has_previous = HasPrevious(p.reset, p.T, row);
  const bool has_next = (row + 1) % p.T != 0 && HasPrevious(p.reset, p.T, row + 1);
  const float* x = p.sum + row * C;
  const __m256 mean = Broadcast(p.mean[row]), rstd = Broadcast(p.rstd[row]);
  const __m256 prev_mean = has_previous ? Broadcast(p.mean[row - 1]) : mean;
  const __m256 prev_rstd = has_previous ? Broadcast(p.rstd[row - 1]) : rstd;
  for (int64_t c = 0; c < C; c += 8) {
    const Lanes l(C - c);
    const __m256 weight = l.Load(p.ln_weight + c), bias = l.Load(p.ln_bias + c);
    const __m256 hat = (l.Load(x + c) - mean) * rstd;
    const __m256 n = hat * weight + bias;
    __m256 prev = _mm256_setzero_ps(), d = _mm256_setzero_ps();
    if (has_previous) prev = (l.Load(x - C + c) - prev_mean) * prev_rstd * weight + bias;
    for (int64_t m = 0; m < M; ++m) {
      const float* grad = p.d_mixed[m] + row * C + c;
      const __m256 g = l.Load(grad), mix = l.Load(p.mix + m * C + c);
      d += g - g * mix;
      if (has_next) d += l.Load(grad + C) * mix;
      l.Add(partial + m * C + c, g * (prev - n));
    }
    l.Add(partial + M * C + c, d * hat);
    l.Add(partial + (M + 1) * C + c, d);
    l.Store(xhat + c, hat);
    l.Store(d_xhat + c, d * weight);
  }
}

// What both passes of Prepare need of one head: 1 / max(norm of k * k_k, 1e-12).
float InverseNorm(const float* k, const float* k_k, int64_t N, bool* clamped) {
  const float squares = SumOver(N, [&](int64_t n, const Lanes& l) {
    const __m256 u = l.Load(k + n) * l.Load(k_k + n);
    return u * u;
  });
  const float norm = std::sqrt(squares);
  *clamped = norm < 1e-12f;
  return 1 / (*clamped ? 1e-12f : norm);
}

void PrepareHeadGrad(const PrepareBackward<float>& p, int64_t at, int64_t c0, float* d_k_k,
                     float* d_k_a) {
  const int64_t N = p.N;
  const __m256 one = Broadcast(1);
  bool clamped;
  const float inverse = InverseNorm(p.k + at, p.k_k + c0, N, &clamped);
  const float dot = SumOver(N, [&](int64_t n, const Lanes& l) {
    const __m256 d_kk =
        l.Load(p.d_b_out + at + n) * Sigmoid(l.Load(p.a_raw + at + n)) - l.Load(p.d_a_out + at + n);
    return l.Load(p.k + at + n) * l.Load(p.k_k + c0 + n) * d_kk;
  });
  const __m256 scale = Broadcast(inverse), along = Broadcast(clamped ? 0 : dot * inverse);
  for (int64_t n = 0; n < N; n += 8) {
    const Lanes l(N - n);
    const int64_t i = at + n, c = c0 + n;
    const __m256 k = l.Load(p.k + i), k_k = l.Load(p.k_k + c), k_a = l.Load(p.k_a + c);
    const __m256 alpha = Sigmoid(l.Load(p.a_raw + i)), kk = k * k_k * scale;
    const __m256 d_b = l.Load(p.d_b_out + i), d_k_out = l.Load(p.d_k_out + i);
    const __m256 d_u = (d_b * alpha - l.Load(p.d_a_out + i) - kk * along) * scale;
    const __m256 d_alpha = d_b * kk + d_k_out * k * k_a;
    l.Store(p.d_k + i, d_k_out * (one + (alpha - one) * k_a) + d_u * k_k);
    l.Store(p.d_a_raw + i, d_alpha * alpha * (one - alpha));
    l.Add(d_k_k + c, d_u * k);
    l.Add(d_k_a + c, d_k_out * k * (alpha - one));
  }
}

void ValueResidualGrad(const PrepareBackward<float>& p, int64_t begin, int64_t end) {
  const __m256 one = Broadcast(1);
  for (int64_t i = begin; i < end; i += 8) {
    const Lanes l(end - i);
    const __m256 s = Sigmoid(l.Load(p.v_raw + i)), d = l.Load(p.d_v_out + i);
    l.Store(p.d_v + i, d - d * s);
    l.Store(p.d_v_first + i, d * s);
    l.Store(p.d_v_raw + i, d * (l.Load(p.v_first + i) - l.Load(p.v + i)) * s * (one - s));
  }
}

float Bonus(const NormBonusGateForward<float>& p, int64_t at, int64_t c0) {
  return SumOver(p.N, [&](int64_t n, const Lanes& l) {
    return l.Load(p.r + at + n) * l.Load(p.k + at + n) * l.Load(p.r_k + c0 + n);
  });
}

void GateHeadGrad(const NormBonusGateBackward<float>& q, int64_t at, int64_t c0, float* partial,
                  float* xhat, float* d_xhat) {
  const NormBonusGateForward<float>& p = q.forward;
  const int64_t N = p.N, C = p.H * N;
  const Statistics s = RowStatistics(p.y + at, N, p.eps);
  const __m256 mean = Broadcast(s.mean), rstd = Broadcast(s.rstd),
               bonus = Broadcast(Bonus(p, at, c0));
  const __m256 d_bonus = Broadcast(SumOver(N, [&](int64_t n, const Lanes& l) {
    return l.Load(q.d_out + at + n) * l.Load(p.g + at + n) * l.Load(p.v + at + n);
  }));
  for (int64_t n = 0; n < N; n += 8) {
    const Lanes l(N - n);
    const int64_t i = at + n, c = c0 + n;
    const __m256 d_out = l.Load(q.d_out + i), r = l.Load(p.r + i), k = l.Load(p.k + i),
                 v = l.Load(p.v + i);
    const __m256 weight = l.Load(p.ln_weight + c), r_k = l.Load(p.r_k + c);
    const __m256 d_h = d_out * l.Load(p.g + i), hat = (l.Load(p.y + i) - mean) * rstd;
    l.Store(q.d_g + i, d_out * (hat * weight + l.Load(p.ln_bias + c) + bonus * v));
    l.Store(q.d_v + i, d_h * bonus);
    l.Store(q.d_r + i, d_bonus * k * r_k);
    l.Store(q.d_k + i, d_bonus * r * r_k);
    l.Add(partial + c, d_bonus * r * k);
    l.Add(partial + C + c, d_h * hat);
    l.Add(partial + 2 * C + c, d_h);
    l.Store(xhat + n, hat);
    l.Store(d_xhat + n, d_h * weight);
  }
  NormGrad(xhat, d_xhat, s.rstd, N, nullptr, q.d_y + at);
}

}  // namespace

void Avx2AddNormMix(const AddNormMixForward<float>& p, int64_t begin, int64_t end) {
  const int64_t C = p.C;
  Scratch<float> memory(3 * (C + 16));
  float *current = memory.Take(C), *previous = memory.Take(C), *zero = memory.Take(C);
  if (begin < end && HasPrevious(p.reset, p.T, begin)) {
    AddRow(p, begin - 1, current);  // another task's row: nothing of it is written
    NormRow(p, current, RowStatistics(current, C, p.eps), previous);
  }
  for (int64_t row = begin; row < end; ++row) {
    float* sum = p.sum + row * C;
    AddRow(p, row, sum);
    const Statistics s = RowStatistics(sum, C, p.eps);
    p.mean[row] = s.mean;
    p.rstd[row] = s.rstd;
    NormRow(p, sum, s, current);
    MixRow(p, row, current, HasPrevious(p.reset, p.T, row) ? previous : zero);
    float* last = previous;
    previous = current;
    current = last;
  }
}

void Avx2AddNormMixGrad(const AddNormMixBackward<float>& p, int64_t begin, int64_t end,
                        float* partial) {
  Scratch<float> xhat(p.C), d_xhat(p.C);
  Clear(partial, (p.M + 2) * p.C);
  for (int64_t row = begin; row < end; ++row) {
    MixGrad(p, row, partial, xhat.data(), d_xhat.data());
    NormGrad(xhat.data(), d_xhat.data(), p.rstd[row], p.C,
             p.d_sum != nullptr ? p.d_sum + row * p.C : nullptr, p.d_x + row * p.C);
  }
}

void Avx2Prepare(const PrepareForward<float>& p, int64_t begin, int64_t end) {
  const int64_t N = p.N;
  const __m256 one = Broadcast(1), zero = _mm256_setzero_ps();
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    bool clamped;
    const __m256 inverse = Broadcast(InverseNorm(p.k + at, p.k_k + c0, N, &clamped));
    for (int64_t n = 0; n < N; n += 8) {
      const Lanes l(N - n);
      const int64_t i = at + n, c = c0 + n;
      const __m256 k = l.Load(p.k + i), alpha = Sigmoid(l.Load(p.a_raw + i));
      const __m256 kk = k * l.Load(p.k_k + c) * inverse;
      l.Store(p.a_out + i, zero - kk);
      l.Store(p.b_out + i, kk * alpha);
      l.Store(p.k_out + i, k * (one + (alpha - one) * l.Load(p.k_a + c)));
      __m256 v = l.Load(p.v + i);
      if (p.v_raw != nullptr) v += (l.Load(p.v_first + i) - v) * Sigmoid(l.Load(p.v_raw + i));
      l.Store(p.v_out + i, v);
    }
  }
}

void Avx2PrepareGrad(const PrepareBackward<float>& p, int64_t begin, int64_t end, float* partial) {
  const int64_t C = p.H * p.N;
  Clear(partial, 2 * C);
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    PrepareHeadGrad(p, head * p.N, head % p.H * p.N, partial, partial + C);
  }
  if (p.v_raw != nullptr) ValueResidualGrad(p, begin * C, end * C);
}

void Avx2NormBonusGate(const NormBonusGateForward<float>& p, int64_t begin, int64_t end) {
  const int64_t N = p.N;
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    const Statistics s = RowStatistics(p.y + at, N, p.eps);
    const __m256 mean = Broadcast(s.mean), rstd = Broadcast(s.rstd),
                 bonus = Broadcast(Bonus(p, at, c0));
    for (int64_t n = 0; n < N; n += 8) {
      const Lanes l(N - n);
      const __m256 normed = (l.Load(p.y + at + n) - mean) * rstd * l.Load(p.ln_weight + c0 + n) +
                            l.Load(p.ln_bias + c0 + n);
      l.Store(p.out + at + n, (normed + bonus * l.Load(p.v + at + n)) * l.Load(p.g + at + n));
    }
  }
}

void Avx2NormBonusGateGrad(const NormBonusGateBackward<float>& q, int64_t begin, int64_t end,
                           float* partial) {
  const int64_t H = q.forward.H, N = q.forward.N;
  Scratch<float> xhat(N), d_xhat(N);
  Clear(partial, 3 * H * N);
  for (int64_t head = begin * H; head < end * H; ++head) {
    GateHeadGrad(q, head * N, head % H * N, partial, xhat.data(), d_xhat.data());
  }
}

void Avx2ReluSquared(const float* x, float* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; i += 8) {
    const Lanes l(end - i);
    // max returns its second operand when one is NaN.
    const __m256 h = _mm256_max_ps(_mm256_setzero_ps(), l.Load(x + i));
    l.Store(out + i, h * h);
  }
}

void Avx2ReluSquaredGrad(const float* x, const float* d_out, float* d_x, int64_t begin,
                         int64_t end) {
  for (int64_t i = begin; i < end; i += 8) {
    const Lanes l(end - i);
    const __m256 h = _mm256_max_ps(_mm256_setzero_ps(), l.Load(x + i));
    l.Store(d_x + i, (h + h) * l.Load(d_out + i));
  }
}

void Avx2AdamW(const AdamWArgs& p, int64_t begin, int64_t end) {
  const __m256 beta1 = Broadcast(p.beta1), beta2 = Broadcast(p.beta2),
               rest1 = Broadcast(1 - p.beta1), rest2 = Broadcast(1 - p.beta2),
               scale = Broadcast(p.grad_scale), eps = Broadcast(p.eps),
               bias2 = Broadcast(p.inv_sqrt_bias2), size = Broadcast(p.step_size),
               decay = Broadcast(p.decay);
  for (int64_t i = begin; i < end; i += 8) {
    const Lanes l(end - i);
    const __m256 g = l.Load(p.grad + i) * scale, w = l.Load(p.param + i);
    const __m256 m = beta1 * l.Load(p.m + i) + rest1 * g,
                 v = beta2 * l.Load(p.v + i) + rest2 * g * g;
    l.Store(p.m + i, m);
    l.Store(p.v + i, v);
    l.Store(p.param + i, w - (size * (m / (_mm256_sqrt_ps(v) * bias2 + eps)) + decay * w));
  }
}

}  // namespace skein::kernels::train
