#pragma once
// WKV-7 in chunks of kChunk = L = 16 tokens, as matrix products; compiled once per tier with that
// tier's products. Inside a chunk, with P the inclusive and Q the exclusive product of decays and
// St the state [key, value] before it:
//
//   left  [2L, N] = a~ = a Q | r~ = r P         right [2L, N] = b~ = b / P | k~ = k / P
//   A     [2L, 2L] = left right^T, token i seeing j < i (rows of a~) or j <= i (rows of r~), and
//   only inside one document values [2L, N] = U | V,   U = (I - A_ab)^{-1} (A_ak V + a~ St) (row t
//   of U is S a of token t) Y = A_q values + r~ St;   St' = P_L St + ends^T values,  ends = right
//   P_L
//
// The triangular solve is a forward substitution: the product form of the inverse loses everything
// when tokens repeat. 1 / P is at most 1.834^16 = 1.6e4, so no rescaling is needed. A last, shorter
// chunk is filled up with tokens that do nothing (w = 1, the rest 0). The backward pass reads the
// saved St and U, and recomputes left, right and A.
//
// `Ops` brings Real and static functions
//   Decay(n, w_raw, sigma, w)                                  sigma = sigmoid(w_raw), w =
//   exp(-e^{-1/2} sigma) Gemm(M, N, K, A, a_row, a_col, B, ldb, C, ldc, add)        C (+)= A B;
//   A(i, k) = A[i * a_row + k * a_col] Transpose(rows, columns, from, ld_from, to, ld_to)
// with M a multiple of 4 or more, N (columns) of 16.

#include <cstdint>

#include "kernels/train/scratch.h"
#include "kernels/train/train_ops.h"

namespace skein::kernels::train {
namespace {

constexpr int64_t kTwo = 2 * kChunk;

template <class Ops>
class Wkv7Chunk {
 public:
  using Real = typename Ops::Real;
  static constexpr Real kDecayScale = Real(0.60653065971263342);  // e^{-1/2}

  // `p` must outlive this object.
  explicit Wkv7Chunk(const Wkv7Forward<Real>& p, bool backward)
      : p_(p),
        N_(p.N),
        chunks_((p.T + kChunk - 1) / kChunk),
        memory_(kTwo * p.N * (backward ? 11 : 6) + 2 * kChunk * p.N + 2 * kTwo * kTwo +
                p.N * p.N * (backward ? 6 : 1) + 64) {
    const int64_t wide = kTwo * N_;
    left_ = memory_.Take(wide);
    right_ = memory_.Take(wide);
    ends_ = memory_.Take(wide);
    values_ = memory_.Take(wide);
    base_ = memory_.Take(wide);
    transposed_ = memory_.Take(wide);
    P_ = memory_.Take(kChunk * N_);
    sigma_ = memory_.Take(kChunk * N_);
    A_ = memory_.Take(kTwo * kTwo);
    state_ = memory_.Take(N_ * N_);
    if (!backward) return;
    d_A_ = memory_.Take(kTwo * kTwo);
    d_values_ = memory_.Take(wide);
    d_out_ = memory_.Take(wide);
    d_left_ = memory_.Take(wide);
    d_right_ = memory_.Take(wide);
    d_ends_ = memory_.Take(wide);
    S_ = memory_.Take(N_ * N_);
    next_S_ = memory_.Take(N_ * N_);
    G_ = memory_.Take(N_ * N_);
    next_G_ = memory_.Take(N_ * N_);
    G_transposed_ = memory_.Take(N_ * N_);
  }

  void Forward(int64_t task) {
    const int64_t NN = N_ * N_;
    if (p_.state != nullptr) {
      Ops::Transpose(N_, N_, p_.state + task * NN, N_, state_, N_);
    } else {
      for (int64_t i = 0; i < NN; ++i) state_[i] = 0;
    }
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      if (p_.chunk_states != nullptr)
        Copy(NN, state_, p_.chunk_states + (task * chunks_ + chunk) * NN);
      Load(task, chunk);
      Scores();
      Values();
      Ops::Gemm(kChunk, N_, kTwo, A_ + kChunk * kTwo, kTwo, 1, values_, N_, base_ + kChunk * N_, N_,
                true);
      for (int64_t i = 0; i < count_; ++i) Copy(N_, base_ + (kChunk + i) * N_, p_.y + Offset(i));
      if (p_.sa != nullptr) {
        for (int64_t i = 0; i < count_; ++i) Copy(N_, values_ + i * N_, p_.sa + Offset(i));
      }
      NextState();
    }
    Ops::Transpose(N_, N_, state_, N_, p_.final_state + task * NN, N_);
  }

  void Backward(const Wkv7Backward<Real>& q, int64_t task) {
    const int64_t NN = N_ * N_;
    Copy(NN, p_.final_state + task * NN, next_S_);
    if (q.d_final_state != nullptr) {
      Copy(NN, q.d_final_state + task * NN, G_);
    } else {
      for (int64_t i = 0; i < NN; ++i) G_[i] = 0;
    }
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      Ops::Transpose(N_, N_, p_.chunk_states + (task * chunks_ + chunk) * NN, N_, S_, N_);
      Load(task, chunk);
      Scores();
      LoadRows(p_.sa, values_);
      for (int64_t i = 0; i < kChunk * N_; ++i) d_out_[kChunk * N_ + i] = 0;
      LoadRows(q.d_y, d_out_ + kChunk * N_);
      ValuesGrad(q);
      ScoresGrad();
      InputsGrad();
      Store(q);
      StateGrad();
      Swap(S_, next_S_);
      Swap(G_, next_G_);
    }
    Copy(NN, G_, q.d_state + task * NN);
  }

 private:
  static void Copy(int64_t n, const Real* __restrict from, Real* __restrict to) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }
  static void Swap(Real*& a, Real*& b) {
    Real* t = a;
    a = b;
    b = t;
  }

  int64_t Offset(int64_t i) const { return base_offset_ + i * p_.H * N_; }

  void LoadRows(const Real* from, Real* to) const {
    for (int64_t i = 0; i < count_; ++i) Copy(N_, from + Offset(i), to + i * N_);
    for (int64_t i = count_ * N_; i < kChunk * N_; ++i) to[i] = 0;
  }

  // Reads the chunk's tokens: documents, decays, left, right, ends and the V half of values.
  void Load(int64_t task, int64_t chunk) {
    const int64_t first = task / p_.H * p_.T + chunk * kChunk;
    const int64_t rest = p_.T - chunk * kChunk;
    count_ = rest < kChunk ? rest : kChunk;
    base_offset_ = (first * p_.H + task % p_.H) * N_;
    int document = 0;
    for (int64_t i = 0; i < kChunk; ++i) {
      resets_[i] = i < count_ && p_.reset != nullptr && p_.reset[first + i];
      document += resets_[i];
      document_[i] = document;
    }
    LoadRows(p_.v, values_ + kChunk * N_);
    for (int64_t i = 0; i < kChunk; ++i) LoadToken(i);
    const Real* last = P_ + (kChunk - 1) * N_;
    for (int64_t i = 0; i < kTwo; ++i) {
      // A key of an earlier document does not reach the end of the chunk.
      const Real reaches = document_[i % kChunk] == document ? 1 : 0;
      for (int64_t n = 0; n < N_; ++n) ends_[i * N_ + n] = reaches * right_[i * N_ + n] * last[n];
    }
  }

  void LoadToken(int64_t i) {
    Real *a = left_ + i * N_, *r = left_ + (kChunk + i) * N_;
    Real *b = right_ + i * N_, *k = right_ + (kChunk + i) * N_;
    Real *P = P_ + i * N_, *sigma = sigma_ + i * N_;
    const Real* Q = P - N_;
    if (i >= count_) {
      for (int64_t n = 0; n < N_; ++n) {
        P[n] = Q[n];  // i > 0: a chunk has at least one token
        a[n] = r[n] = b[n] = k[n] = sigma[n] = 0;
      }
      return;
    }
    const int64_t at = Offset(i);
    Ops::Decay(N_, p_.w_raw + at, sigma, P);
    for (int64_t n = 0; n < N_; ++n) {
      const Real before = i == 0 ? Real(1) : Q[n];
      P[n] *= before;
      const Real inverse = 1 / P[n];
      a[n] = p_.a[at + n] * before;
      r[n] = p_.r[at + n] * P[n];
      b[n] = p_.b[at + n] * inverse;
      k[n] = p_.k[at + n] * inverse;
    }
  }

  // Zeroes what token i may not see: later tokens (rows of a~ also itself) and other documents.
  void Mask(Real* A) const {
    for (int64_t i = 0; i < kTwo; ++i) {
      const int64_t token = i % kChunk, end = i < kChunk ? token : token + 1;
      for (int64_t j = 0; j < kTwo; ++j) {
        const int64_t other = j % kChunk;
        if (other >= end || document_[other] != document_[token]) A[i * kTwo + j] = 0;
      }
    }
  }

  // Rows of tokens that do not see the state before the chunk become zero. `rows` is [2L, N].
  void MaskState(Real* rows) const {
    for (int64_t i = 0; i < kTwo; ++i) {
      if (document_[i % kChunk] == 0) continue;
      for (int64_t n = 0; n < N_; ++n) rows[i * N_ + n] = 0;
    }
  }

  void Scores() {
    Ops::Transpose(kTwo, N_, right_, N_, transposed_, kTwo);
    Ops::Gemm(kTwo, kTwo, N_, left_, N_, 1, transposed_, kTwo, A_, kTwo, false);
    Mask(A_);
  }

  // base = left St; values' U half by forward substitution.
  void Values() {
    Ops::Gemm(kTwo, N_, N_, left_, N_, 1, state_, N_, base_, N_, false);
    MaskState(base_);
    Ops::Gemm(kChunk, N_, kChunk, A_ + kChunk, kTwo, 1, values_ + kChunk * N_, N_, base_, N_, true);
    for (int64_t i = 0; i < kChunk; ++i) {
      Real* __restrict u = values_ + i * N_;
      Copy(N_, base_ + i * N_, u);
      for (int64_t j = 0; j < i; ++j) {
        const Real f = A_[i * kTwo + j];
        const Real* from = values_ + j * N_;
        for (int64_t n = 0; n < N_; ++n) u[n] += f * from[n];
      }
    }
  }

  // The factor by which the state before the chunk reaches its end, per key.
  Real Carry(int64_t n) const {
    return document_[kChunk - 1] == 0 ? P_[(kChunk - 1) * N_ + n] : Real(0);
  }

  void NextState() {
    for (int64_t i = 0; i < N_; ++i) {
      const Real carry = Carry(i);
      for (int64_t n = 0; n < N_; ++n) state_[i * N_ + n] *= carry;
    }
    Ops::Gemm(N_, N_, kTwo, ends_, 1, N_, values_, N_, state_, N_, true);
  }

  // d_values = dU | dV; d_out's first half becomes dX = (I - A_ab)^{-T} dU. Its second half holds
  // dY.
  void ValuesGrad(const Wkv7Backward<Real>& q) {
    Ops::Transpose(N_, N_, G_, N_, G_transposed_, N_);
    Ops::Gemm(kTwo, N_, N_, ends_, N_, 1, G_transposed_, N_, d_values_, N_, false);
    Ops::Gemm(kTwo, N_, kChunk, A_ + kChunk * kTwo, 1, kTwo, d_out_ + kChunk * N_, N_, d_values_,
              N_, true);
    for (int64_t j = kChunk - 1; j >= 0; --j) {
      Real* __restrict x = d_out_ + j * N_;
      Copy(N_, d_values_ + j * N_, x);
      for (int64_t i = j + 1; i < kChunk; ++i) {
        const Real f = A_[i * kTwo + j];
        const Real* from = d_out_ + i * N_;
        for (int64_t n = 0; n < N_; ++n) x[n] += f * from[n];
      }
    }
    Ops::Gemm(kChunk, N_, kChunk, A_ + kChunk, 1, kTwo, d_out_, N_, d_values_ + kChunk * N_, N_,
              true);
    for (int64_t i = 0; i < count_; ++i) Copy(N_, d_values_ + (kChunk + i) * N_, q.d_v + Offset(i));
  }

  void ScoresGrad() {
    Ops::Transpose(kTwo, N_, values_, N_, transposed_, kTwo);
    Ops::Gemm(kTwo, kTwo, N_, d_out_, N_, 1, transposed_, kTwo, d_A_, kTwo, false);
    Mask(d_A_);
  }

  // Gradients of left and right, and of ends as seen through the next state (in d_ends). From here
  // on d_out's rows that do not see the state before the chunk are zero.
  void InputsGrad() {
    Ops::Gemm(kTwo, N_, kTwo, d_A_, kTwo, 1, right_, N_, d_left_, N_, false);
    Ops::Gemm(kTwo, N_, kTwo, d_A_, 1, kTwo, left_, N_, d_right_, N_, false);
    if (document_[kChunk - 1] != 0) MaskState(d_out_);
    Ops::Gemm(kTwo, N_, N_, d_out_, N_, 1, S_, N_, d_left_, N_, true);
    Ops::Gemm(kTwo, N_, N_, values_, N_, 1, G_, N_, d_ends_, N_, false);
    const Real* last = P_ + (kChunk - 1) * N_;
    for (int64_t i = 0; i < kTwo; ++i) {
      if (document_[i % kChunk] != document_[kChunk - 1]) continue;
      for (int64_t n = 0; n < N_; ++n) d_right_[i * N_ + n] += last[n] * d_ends_[i * N_ + n];
    }
  }

  // Undoes the scaling by decays, and sums up the gradient of log w from the last token back:
  //   dlogw_t = colsum(dS' S') + sum_{s >= t} (r dr - k dk - b db) + sum_{s > t} a da
  // Both sums are over one document; across a reset they are exactly zero.
  void Store(const Wkv7Backward<Real>& q) {
    Real* __restrict d_log_w = transposed_;
    for (int64_t n = 0; n < N_; ++n) d_log_w[n] = 0;
    for (int64_t i = 0; i < N_; ++i) {
      for (int64_t n = 0; n < N_; ++n) d_log_w[n] += G_[i * N_ + n] * next_S_[i * N_ + n];
    }
    for (int64_t i = count_ - 1; i >= 0; --i) StoreToken(q, i, d_log_w);
  }

  void StoreToken(const Wkv7Backward<Real>& q, int64_t i, Real* __restrict d_log_w) {
    const int64_t at = Offset(i);
    const Real* __restrict P = P_ + i * N_;
    const Real* __restrict sigma = sigma_ + i * N_;
    for (int64_t n = 0; n < N_; ++n) {
      const Real before = i == 0 ? Real(1) : P_[(i - 1) * N_ + n];
      const Real inverse = 1 / P[n];
      const Real d_a = d_left_[i * N_ + n] * before;
      const Real d_r = d_left_[(kChunk + i) * N_ + n] * P[n];
      const Real d_b = d_right_[i * N_ + n] * inverse;
      const Real d_k = d_right_[(kChunk + i) * N_ + n] * inverse;
      q.d_a[at + n] = d_a;
      q.d_r[at + n] = d_r;
      q.d_b[at + n] = d_b;
      q.d_k[at + n] = d_k;
      const Real d = d_log_w[n] + p_.r[at + n] * d_r - p_.k[at + n] * d_k - p_.b[at + n] * d_b;
      q.d_w_raw[at + n] = d * -kDecayScale * sigma[n] * (1 - sigma[n]);
      d_log_w[n] = resets_[i] ? Real(0) : d + p_.a[at + n] * d_a;
    }
  }

  // next_G = dS before the chunk.
  void StateGrad() {
    for (int64_t i = 0; i < N_; ++i) {
      for (int64_t n = 0; n < N_; ++n) next_G_[i * N_ + n] = G_[i * N_ + n] * Carry(n);
    }
    Ops::Gemm(N_, N_, kTwo, d_out_, 1, N_, left_, N_, next_G_, N_, true);
  }

  const Wkv7Forward<Real>& p_;
  const int64_t N_, chunks_;
  Scratch<Real> memory_;
  int64_t count_ = 0;        // tokens of this chunk
  int64_t base_offset_ = 0;  // of its first token in the [R, C] arrays
  bool resets_[kChunk] = {};
  int document_[kChunk] = {};  // number of resets up to and including each token
  Real *left_, *right_, *ends_, *values_, *base_;  // [2L, N]
  Real* transposed_;                               // [N, 2L]
  Real *P_, *sigma_;                               // [L, N]
  Real* A_;                                        // [2L, 2L]
  Real* state_;                                    // [key, value]
  Real *d_A_, *d_values_, *d_out_, *d_left_, *d_right_, *d_ends_;
  Real *S_, *next_S_, *G_, *next_G_, *G_transposed_;  // [value, key]; before and after the chunk
};

}  // namespace
}  // namespace skein::kernels::train
