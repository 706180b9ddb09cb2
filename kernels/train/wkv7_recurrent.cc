// The specification of WKV-7: one token after another, forward and backward.

#include <algorithm>
#include <cmath>

#include "kernels/train/plain.h"
#include "kernels/train/scratch.h"

namespace skein::kernels::train {
namespace {

constexpr double kDecayScale = 0.60653065971263342;  // e^{-1/2}

template <class Real>
Real Sigmoid(Real x) {
  return 1 / (1 + std::exp(-x));
}

// The token of one head: where its N channels start in the [R, C] arrays.
template <class Real>
int64_t Offset(const Wkv7Forward<Real>& p, int64_t task, int64_t t) {
  return ((task / p.H * p.T + t) * p.H + task % p.H) * p.N;
}

template <class Real>
bool Resets(const Wkv7Forward<Real>& p, int64_t task, int64_t t) {
  return p.reset != nullptr && p.reset[task / p.H * p.T + t];
}

// S <- S diag(w) + sa b^T + v k^T with sa = S a, for one token; `before` is S (zeroed on reset),
// `after` the result.
template <class Real>
void Step(const Wkv7Forward<Real>& p, int64_t at, const Real* before, Real* after, Real* sa) {
  const int64_t N = p.N;
  for (int64_t i = 0; i < N; ++i) {
    sa[i] = 0;
    for (int64_t j = 0; j < N; ++j) sa[i] += before[i * N + j] * p.a[at + j];
  }
  for (int64_t j = 0; j < N; ++j) {
    const Real w = std::exp(-Real(kDecayScale) * Sigmoid(p.w_raw[at + j]));
    for (int64_t i = 0; i < N; ++i) {
      after[i * N + j] = before[i * N + j] * w + sa[i] * p.b[at + j] + p.v[at + i] * p.k[at + j];
    }
  }
}

template <class Real>
void LoadState(const Wkv7Forward<Real>& p, int64_t task, Real* S) {
  const int64_t NN = p.N * p.N;
  for (int64_t i = 0; i < NN; ++i) S[i] = p.state != nullptr ? p.state[task * NN + i] : 0;
}

template <class Real>
void SaveChunkState(const Wkv7Forward<Real>& p, int64_t task, int64_t t, const Real* S) {
  const int64_t N = p.N, chunks = (p.T + kChunk - 1) / kChunk;
  if (p.chunk_states == nullptr || t % kChunk != 0) return;
  Real* out = p.chunk_states + (task * chunks + t / kChunk) * N * N;
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) out[j * N + i] = S[i * N + j];
  }
}

// Gradients of one token. G holds dL/dS after this token on entry and before it on return.
template <class Real>
void StepGrad(const Wkv7Backward<Real>& q, int64_t at, const Real* before, const Real* after,
              Real* G, Real* d_sa) {
  const Wkv7Forward<Real>& p = q.forward;
  const int64_t N = p.N;
  for (int64_t i = 0; i < N; ++i) {
    for (int64_t j = 0; j < N; ++j) G[i * N + j] += q.d_y[at + i] * p.r[at + j];
  }
  for (int64_t i = 0; i < N; ++i) {
    q.d_v[at + i] = d_sa[i] = 0;
    for (int64_t j = 0; j < N; ++j) {
      q.d_v[at + i] += G[i * N + j] * p.k[at + j];
      d_sa[i] += G[i * N + j] * p.b[at + j];
    }
  }
  for (int64_t j = 0; j < N; ++j) {
    Real d_r = 0, d_w = 0, d_k = 0, d_a = 0, d_b = 0;
    const Real s = Sigmoid(p.w_raw[at + j]), w = std::exp(-Real(kDecayScale) * s);
    for (int64_t i = 0; i < N; ++i) {
      Real sa = 0;
      for (int64_t n = 0; n < N; ++n) sa += before[i * N + n] * p.a[at + n];
      const Real g = G[i * N + j];
      d_r += after[i * N + j] * q.d_y[at + i];
      d_w += g * before[i * N + j];
      d_k += g * p.v[at + i];
      d_b += g * sa;
      d_a += before[i * N + j] * d_sa[i];
    }
    q.d_r[at + j] = d_r;
    q.d_k[at + j] = d_k;
    q.d_a[at + j] = d_a;
    q.d_b[at + j] = d_b;
    q.d_w_raw[at + j] = d_w * w * -Real(kDecayScale) * s * (1 - s);
    for (int64_t i = 0; i < N; ++i) G[i * N + j] = G[i * N + j] * w + d_sa[i] * p.a[at + j];
  }
}

}  // namespace

template <class Real>
void RecurrentWkv7(const Wkv7Forward<Real>& p, int64_t begin, int64_t end) {
  const int64_t N = p.N, NN = N * N;
  Scratch<Real> S(NN), next(NN), sa(N);
  for (int64_t task = begin; task < end; ++task) {
    LoadState(p, task, S.data());
    for (int64_t t = 0; t < p.T; ++t) {
      const int64_t at = Offset(p, task, t);
      // A saved state is the one before the chunk, so before the reset of its first token.
      SaveChunkState(p, task, t, S.data());
      if (Resets(p, task, t)) std::fill_n(S.data(), NN, Real(0));
      Step(p, at, S.data(), next.data(), sa.data());
      std::copy_n(next.data(), NN, S.data());
      for (int64_t i = 0; i < N; ++i) {
        Real y = 0;
        for (int64_t j = 0; j < N; ++j) y += S[i * N + j] * p.r[at + j];
        p.y[at + i] = y;
        if (p.sa != nullptr) p.sa[at + i] = sa[i];
      }
    }
    std::copy_n(S.data(), NN, p.final_state + task * NN);
  }
}

template <class Real>
void RecurrentWkv7Grad(const Wkv7Backward<Real>& q, int64_t begin, int64_t end) {
  const Wkv7Forward<Real>& p = q.forward;
  const int64_t N = p.N, NN = N * N;
  // before[t] and after[t] differ from after[t - 1] and before[t + 1] by the reset.
  Scratch<Real> before(p.T * NN), after(p.T * NN), G(NN), d_sa(N);
  for (int64_t task = begin; task < end; ++task) {
    LoadState(p, task, before.data());
    for (int64_t t = 0; t < p.T; ++t) {
      Real* S = before.data() + t * NN;
      if (t > 0) std::copy_n(after.data() + (t - 1) * NN, NN, S);
      if (Resets(p, task, t)) std::fill_n(S, NN, Real(0));
      Step(p, Offset(p, task, t), S, after.data() + t * NN, d_sa.data());
    }
    for (int64_t i = 0; i < NN; ++i)
      G[i] = q.d_final_state != nullptr ? q.d_final_state[task * NN + i] : 0;
    for (int64_t t = p.T - 1; t >= 0; --t) {
      StepGrad(q, Offset(p, task, t), before.data() + t * NN, after.data() + t * NN, G.data(),
               d_sa.data());
      if (Resets(p, task, t)) std::fill_n(G.data(), NN, Real(0));
    }
    std::copy_n(G.data(), NN, q.d_state + task * NN);
  }
}

template void RecurrentWkv7(const Wkv7Forward<float>&, int64_t, int64_t);
template void RecurrentWkv7(const Wkv7Forward<double>&, int64_t, int64_t);
template void RecurrentWkv7Grad(const Wkv7Backward<float>&, int64_t, int64_t);
template void RecurrentWkv7Grad(const Wkv7Backward<double>&, int64_t, int64_t);

}  // namespace skein::kernels::train
