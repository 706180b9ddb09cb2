// The specification of the operators that work row by row: each formula as a loop, in float and
// double.

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/train/plain.h"
#include "kernels/train/scratch.h"

namespace skein::kernels::train {
namespace {

template <class Real>
Real Sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

template <class Real>
void RowStatistics(const Real* x, int64_t n, Real eps, Real* mean, Real* rstd) {
  Real sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const Real m = sum / n;
  Real squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - m) * (x[i] - m);
  *mean = m;
  *rstd = 1 / std::sqrt(squares / n + eps);
}

template <class Real, class Args>
void Normalize(const Args& p, const Real* x, Real mean, Real rstd, Real* out) {
  for (int64_t c = 0; c < p.C; ++c) out[c] = (x[c] - mean) * rstd * p.ln_weight[c] + p.ln_bias[c];
}

// Whether row `row` sees its predecessor.
bool HasPrevious(const bool* reset, int64_t T, int64_t row) {
  return row % T != 0 && !(reset != nullptr && reset[row]);
}

template <class Real>
void NormalizeInputRow(const AddNormMixForward<Real>& p, int64_t row, Real* n) {
  Real* sum = p.sum + row * p.C;
  for (int64_t c = 0; c < p.C; ++c) {
    sum[c] = p.x[row * p.C + c] + (p.delta != nullptr ? p.delta[row * p.C + c] : 0);
  }
  RowStatistics(sum, p.C, p.eps, &p.mean[row], &p.rstd[row]);
  Normalize(p, sum, p.mean[row], p.rstd[row], n);
}

// n of the row before `begin`, which another task owns: nothing is written but n.
template <class Real>
void NormalizeForeignRow(const AddNormMixForward<Real>& p, int64_t row, Real* n) {
  for (int64_t c = 0; c < p.C; ++c) {
    n[c] = p.x[row * p.C + c] + (p.delta != nullptr ? p.delta[row * p.C + c] : 0);
  }
  Real mean, rstd;
  RowStatistics(n, p.C, p.eps, &mean, &rstd);
  Normalize(p, n, mean, rstd, n);
}

// d_x = the gradient through xhat = (x - mean) * rstd, given d_xhat, over n channels.
template <class Real>
void NormGrad(const Real* xhat, const Real* d_xhat, Real rstd, int64_t n, Real* d_x) {
  Real mean_d = 0, mean_dx = 0;
  for (int64_t i = 0; i < n; ++i) {
    mean_d += d_xhat[i];
    mean_dx += d_xhat[i] * xhat[i];
  }
  mean_d /= n;
  mean_dx /= n;
  for (int64_t i = 0; i < n; ++i) d_x[i] = rstd * (d_xhat[i] - mean_d - xhat[i] * mean_dx);
}

// To the nearest bf16, ties to even; finite numbers alone.
float RoundedToBf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace

template <class Real>
void PlainAddNormMix(const AddNormMixForward<Real>& p, int64_t begin, int64_t end) {
  const int64_t C = p.C, R = p.B * p.T;
  Scratch<Real> current(C), previous(C), zero(C);
  if (begin < end && HasPrevious(p.reset, p.T, begin)) {
    NormalizeForeignRow(p, begin - 1, previous.data());
  }
  for (int64_t row = begin; row < end; ++row) {
    NormalizeInputRow(p, row, current.data());
    const Real* prev = HasPrevious(p.reset, p.T, row) ? previous.data() : zero.data();
    for (int64_t m = 0; m < p.M; ++m) {
      Real* out = p.mixed + (m * R + row) * C;
      for (int64_t c = 0; c < C; ++c) {
        out[c] = current[c] + (prev[c] - current[c]) * p.mix[m * C + c];
      }
    }
    std::copy_n(current.data(), C, previous.data());
  }
}

template <class Real>
void PlainAddNormMixGrad(const AddNormMixBackward<Real>& p, int64_t begin, int64_t end,
                         Real* partial) {
  const int64_t C = p.C, M = p.M;
  Scratch<Real> n(C), prev(C), xhat(C), d_n(C);
  Real* d_mix = partial;
  Real* d_weight = partial + M * C;
  Real* d_bias = d_weight + C;
  std::fill_n(partial, (M + 2) * C, Real(0));
  for (int64_t row = begin; row < end; ++row) {
    const bool has_previous = HasPrevious(p.reset, p.T, row);
    const bool has_next = (row + 1) % p.T != 0 && HasPrevious(p.reset, p.T, row + 1);
    Normalize(p, p.sum + row * C, p.mean[row], p.rstd[row], n.data());
    std::fill_n(prev.data(), C, Real(0));
    if (has_previous) {
      Normalize(p, p.sum + (row - 1) * C, p.mean[row - 1], p.rstd[row - 1], prev.data());
    }
    for (int64_t c = 0; c < C; ++c) {
      Real d = 0;
      for (int64_t m = 0; m < M; ++m) {
        const Real g = p.d_mixed[m][row * C + c];
        d += g * (1 - p.mix[m * C + c]);
        d_mix[m * C + c] += g * (prev[c] - n[c]);
        if (has_next) d += p.d_mixed[m][(row + 1) * C + c] * p.mix[m * C + c];
      }
      xhat[c] = (p.sum[row * C + c] - p.mean[row]) * p.rstd[row];
      d_weight[c] += d * xhat[c];
      d_bias[c] += d;
      d_n[c] = d * p.ln_weight[c];
    }
    Real* d_x = p.d_x + row * C;
    NormGrad(xhat.data(), d_n.data(), p.rstd[row], C, d_x);
    if (p.d_sum != nullptr) {
      for (int64_t c = 0; c < C; ++c) d_x[c] += p.d_sum[row * C + c];
    }
  }
}

template <class Real>
void PlainPrepare(const PrepareForward<Real>& p, int64_t begin, int64_t end) {
  const int64_t N = p.N;
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    Real squares = 0;
    for (int64_t n = 0; n < N; ++n) {
      const Real u = p.k[at + n] * p.k_k[c0 + n];
      squares += u * u;
    }
    const Real norm = std::max(std::sqrt(squares), Real(1e-12));
    for (int64_t n = 0; n < N; ++n) {
      const int64_t i = at + n;
      const Real alpha = Sigmoid(p.a_raw[i]);
      const Real kk = p.k[i] * p.k_k[c0 + n] / norm;
      p.a_out[i] = -kk;
      p.b_out[i] = kk * alpha;
      p.k_out[i] = p.k[i] * (1 + (alpha - 1) * p.k_a[c0 + n]);
      p.v_out[i] = p.v[i];
      if (p.v_raw != nullptr) p.v_out[i] += (p.v_first[i] - p.v[i]) * Sigmoid(p.v_raw[i]);
    }
  }
}

template <class Real>
void PlainPrepareGrad(const PrepareBackward<Real>& p, int64_t begin, int64_t end, Real* partial) {
  const int64_t N = p.N, C = p.H * N;
  Real* d_k_k = partial;
  Real* d_k_a = partial + C;
  std::fill_n(partial, 2 * C, Real(0));
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    Real squares = 0, dot = 0;
    for (int64_t n = 0; n < N; ++n) {
      const Real u = p.k[at + n] * p.k_k[c0 + n];
      squares += u * u;
      dot += u * (p.d_b_out[at + n] * Sigmoid(p.a_raw[at + n]) - p.d_a_out[at + n]);
    }
    const bool clamped = std::sqrt(squares) < Real(1e-12);
    const Real norm = clamped ? Real(1e-12) : std::sqrt(squares);
    for (int64_t n = 0; n < N; ++n) {
      const int64_t i = at + n, c = c0 + n;
      const Real k = p.k[i], alpha = Sigmoid(p.a_raw[i]), kk = k * p.k_k[c] / norm;
      const Real d_kk = p.d_b_out[i] * alpha - p.d_a_out[i];
      const Real d_u = (d_kk - (clamped ? 0 : kk * dot / norm)) / norm;
      const Real d_alpha = p.d_b_out[i] * kk + p.d_k_out[i] * k * p.k_a[c];
      p.d_k[i] = p.d_k_out[i] * (1 + (alpha - 1) * p.k_a[c]) + d_u * p.k_k[c];
      p.d_a_raw[i] = d_alpha * alpha * (1 - alpha);
      d_k_k[c] += d_u * k;
      d_k_a[c] += p.d_k_out[i] * k * (alpha - 1);
      if (p.v_raw != nullptr) {
        const Real s = Sigmoid(p.v_raw[i]), d_v = p.d_v_out[i];
        p.d_v[i] = d_v * (1 - s);
        p.d_v_first[i] = d_v * s;
        p.d_v_raw[i] = d_v * (p.v_first[i] - p.v[i]) * s * (1 - s);
      }
    }
  }
}

template <class Real>
void PlainNormBonusGate(const NormBonusGateForward<Real>& p, int64_t begin, int64_t end) {
  const int64_t N = p.N;
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    Real mean, rstd, bonus = 0;
    RowStatistics(p.y + at, N, p.eps, &mean, &rstd);
    for (int64_t n = 0; n < N; ++n) bonus += p.r[at + n] * p.k[at + n] * p.r_k[c0 + n];
    for (int64_t n = 0; n < N; ++n) {
      const Real xhat = (p.y[at + n] - mean) * rstd;
      p.out[at + n] =
          (xhat * p.ln_weight[c0 + n] + p.ln_bias[c0 + n] + bonus * p.v[at + n]) * p.g[at + n];
    }
  }
}

template <class Real>
void PlainNormBonusGateGrad(const NormBonusGateBackward<Real>& q, int64_t begin, int64_t end,
                            Real* partial) {
  const NormBonusGateForward<Real>& p = q.forward;
  const int64_t N = p.N, C = p.H * N;
  Real* d_r_k = partial;
  Real* d_weight = partial + C;
  Real* d_bias = partial + 2 * C;
  std::fill_n(partial, 3 * C, Real(0));
  Scratch<Real> xhat(N), d_xhat(N);
  for (int64_t head = begin * p.H; head < end * p.H; ++head) {
    const int64_t at = head * N, c0 = head % p.H * N;
    Real mean, rstd, bonus = 0, d_bonus = 0;
    RowStatistics(p.y + at, N, p.eps, &mean, &rstd);
    for (int64_t n = 0; n < N; ++n) {
      bonus += p.r[at + n] * p.k[at + n] * p.r_k[c0 + n];
      d_bonus += q.d_out[at + n] * p.g[at + n] * p.v[at + n];
    }
    for (int64_t n = 0; n < N; ++n) {
      const int64_t i = at + n, c = c0 + n;
      const Real d_h = q.d_out[i] * p.g[i];
      xhat[n] = (p.y[i] - mean) * rstd;
      d_xhat[n] = d_h * p.ln_weight[c];
      q.d_g[i] = q.d_out[i] * (xhat[n] * p.ln_weight[c] + p.ln_bias[c] + bonus * p.v[i]);
      q.d_v[i] = d_h * bonus;
      q.d_r[i] = d_bonus * p.k[i] * p.r_k[c];
      q.d_k[i] = d_bonus * p.r[i] * p.r_k[c];
      d_r_k[c] += d_bonus * p.r[i] * p.k[i];
      d_weight[c] += d_h * xhat[n];
      d_bias[c] += d_h;
    }
    NormGrad(xhat.data(), d_xhat.data(), rstd, N, q.d_y + at);
  }
}

template <class Real>
void PlainCrossEntropy(const CrossEntropyArgs<Real>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    Real* logits = p.logits + row * p.V;
    p.ce[row] = p.max_squared[row] = 0;
    if (p.labels[row] < 0) {
      if (p.gradient) std::fill_n(logits, p.V, Real(0));
      continue;
    }
    const int64_t best = std::max_element(logits, logits + p.V) - logits;
    const Real max = logits[best], label_logit = logits[p.labels[row]];
    Real sum = 0;
    for (int64_t v = 0; v < p.V; ++v) sum += std::exp(logits[v] - max);
    p.ce[row] = std::log(sum) + max - label_logit;
    p.max_squared[row] = static_cast<double>(max) * max;
    if (!p.gradient) continue;
    const Real scale = (p.weights != nullptr ? p.weights[row] : 1) * p.inv_norm;
    for (int64_t v = 0; v < p.V; ++v) logits[v] = scale * std::exp(logits[v] - max) / sum;
    logits[p.labels[row]] -= scale;
    logits[best] += p.l2 * max;
  }
}

template <class Real>
void PlainReluSquared(const Real* x, Real* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    // Not max(x, 0): a NaN has to go through.
    const Real h = x[i] < 0 ? Real(0) : x[i];
    out[i] = h * h;
  }
}

template <class Real>
void PlainReluSquaredGrad(const Real* x, const Real* d_out, Real* d_x, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) d_x[i] = 2 * (x[i] < 0 ? Real(0) : x[i]) * d_out[i];
}

void PlainAdamW(const AdamWArgs& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const float g = p.grad[i] * p.grad_scale;
    p.m[i] = p.beta1 * p.m[i] + (1 - p.beta1) * g;
    p.v[i] = p.beta2 * p.v[i] + (1 - p.beta2) * g * g;
    const float denominator = std::sqrt(p.v[i]) * p.inv_sqrt_bias2 + p.eps;
    p.param[i] -= p.step_size * (p.m[i] / denominator) + p.decay * p.param[i];
  }
}

void PlainProduct(const ProductArgs& p, int64_t begin, int64_t end) {
  const int64_t first = begin * kProductLines, last = end * kProductLines;
  const bool columns = p.by_columns();
  for (int64_t m = columns ? 0 : first; m < (columns ? p.M : std::min(p.M, last)); ++m) {
    for (int64_t n = columns ? first : 0; n < (columns ? std::min(p.N, last) : p.N); ++n) {
      float sum = 0;
      for (int64_t k = 0; k < p.K; ++k) {
        sum += RoundedToBf16(p.a[m * p.a_row + k * p.a_column]) *
               RoundedToBf16(p.b[k * p.b_row + n * p.b_column]);
      }
      float& c = p.c[m * p.N + n];
      c = sum + (p.add ? c : p.bias != nullptr ? p.bias[n] : 0);
    }
  }
}

#define SKEIN_INSTANTIATE(Real)                                                                \
  template void PlainAddNormMix(const AddNormMixForward<Real>&, int64_t, int64_t);             \
  template void PlainAddNormMixGrad(const AddNormMixBackward<Real>&, int64_t, int64_t, Real*); \
  template void PlainPrepare(const PrepareForward<Real>&, int64_t, int64_t);                   \
  template void PlainPrepareGrad(const PrepareBackward<Real>&, int64_t, int64_t, Real*);       \
  template void PlainNormBonusGate(const NormBonusGateForward<Real>&, int64_t, int64_t);       \
  template void PlainNormBonusGateGrad(const NormBonusGateBackward<Real>&, int64_t, int64_t,   \
                                       Real*);                                                 \
  template void PlainCrossEntropy(const CrossEntropyArgs<Real>&, int64_t, int64_t);            \
  template void PlainReluSquared(const Real*, Real*, int64_t, int64_t);                        \
  template void PlainReluSquaredGrad(const Real*, const Real*, Real*, int64_t, int64_t);
SKEIN_INSTANTIATE(float)
SKEIN_INSTANTIATE(double)
#undef SKEIN_INSTANTIATE

}  // namespace skein::kernels::train
