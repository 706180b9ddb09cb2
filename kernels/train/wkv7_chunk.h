#pragma once
// WKV-7 in chunks of kChunk = L = 16 tokens, as matrix products; compiled once per tier with that
// tier's products. Inside a chunk, with P the inclusive and Q the exclusive product of decays and
// St the state [key, value] before it:
//
//   left   [2L, N]   a~ = a Q  over  r~ = r P
//   right  [2L, N]   b~ = b / P  over  k~ = k / P
//   ends   [2L, N]   right P_L
//   A      [2L, 2L]  left right^T; token i sees j < i (rows of a~) or j <= i (rows of r~), and
//                    only inside one document
//   values [2L, N]   U over V; U = (I - A_ab)^{-1} (A_ak V + a~ St), row t of it is S a of token t
//   Y = A_r values + r~ St;  St' = P_L St + ends^T values
//
// The triangular solve is a forward substitution: the product form of the inverse loses everything
// when tokens repeat. 1 / P is at most 1.834^16 = 1.6e4, so no rescaling is needed. A last, shorter
// chunk is filled up with tokens that do nothing (w = 1, the rest 0). The backward pass reads the
// saved St and U, and recomputes left, right and A.
//
// `Ops` brings Real and the static functions
//
//   Decay(n, w_raw, sigma, w): sigma = sigmoid(w_raw), w = exp(-e^{-1/2} sigma)
//   Gemm(M, N, K, A, a_row, a_col, B, ldb, C, ldc, add): C = A B or C += A B,
//     A(i, k) = A[i * a_row + k * a_col], M a multiple of 4, N of 16
//   AddRow(N, K, A, a_col, B, ldb, C): C += A B for one row
//   Transpose(rows, columns, from, ld_from, to, ld_to): multiples of 8
//   Copy(n, from, to): n a multiple of 16
//
// Loops over channels say that their arrays do not overlap, for the compiler to vectorise.

#include <cstdint>
#include <initializer_list>

#include "kernels/train/scratch.h"
#include "kernels/train/train_ops.h"

#if defined(__clang__)
#define SKEIN_ARRAYS_DO_NOT_OVERLAP  // it fails where it cannot vectorise what it was told to
#else
#define SKEIN_ARRAYS_DO_NOT_OVERLAP _Pragma("GCC ivdep")
#endif

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
        memory_(kTwo * p.N * (backward ? 10 : 6) + (2 * kChunk + 2) * p.N + 3 * kTwo * kTwo +
                p.N * p.N * (backward ? 6 : 1) + 64) {
    const int64_t wide = kTwo * N_;
    left_ = memory_.Take(wide);
    right_ = memory_.Take(wide);
    ends_ = memory_.Take(wide);
    values_ = memory_.Take(wide);
    base_ = memory_.Take(kChunk * N_);
    transposed_ = memory_.Take(wide);
    decay_ = memory_.Take((kChunk + 1) * N_);
    carry_ = memory_.Take(N_);
    sigma_ = memory_.Take(kChunk * N_);
    A_ = memory_.Take(kTwo * kTwo);
    mask_ = memory_.Take(kTwo * kTwo);
    state_ = memory_.Take(N_ * N_);
    for (int64_t n = 0; n < N_; ++n) decay_[n] = 1;
    FillMask();
    if (!backward) return;
    d_A_ = memory_.Take(kTwo * kTwo);
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
      if (p_.chunk_states != nullptr) {
        Ops::Copy(NN, state_, p_.chunk_states + (task * chunks_ + chunk) * NN);
      }
      Load(task, chunk);
      if (chunk + 1 < chunks_) Prefetch(task, chunk + 1, {p_.r, p_.w_raw, p_.k, p_.v, p_.a, p_.b});
      Scores();
      Values();
      Ops::Gemm(kChunk, N_, kTwo, A_ + kChunk * kTwo, kTwo, 1, values_, N_, base_, N_, true);
      for (int64_t i = 0; i < count_; ++i) Ops::Copy(N_, base_ + i * N_, p_.y + Offset(i));
      if (p_.sa != nullptr) {
        for (int64_t i = 0; i < count_; ++i) Ops::Copy(N_, values_ + i * N_, p_.sa + Offset(i));
      }
      NextState();
    }
    Ops::Transpose(N_, N_, state_, N_, p_.final_state + task * NN, N_);
  }

  void Backward(const Wkv7Backward<Real>& q, int64_t task) {
    const int64_t NN = N_ * N_;
    Ops::Copy(NN, p_.final_state + task * NN, next_S_);
    if (q.d_final_state != nullptr) {
      Ops::Copy(NN, q.d_final_state + task * NN, G_);
    } else {
      for (int64_t i = 0; i < NN; ++i) G_[i] = 0;
    }
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      Ops::Transpose(N_, N_, p_.chunk_states + (task * chunks_ + chunk) * NN, N_, S_, N_);
      Load(task, chunk);
      Scores();
      LoadRows(p_.sa, values_);
      LoadRows(q.d_y, d_out_ + kChunk * N_);
      if (chunk > 0) {
        Prefetch(task, chunk - 1, {p_.r, p_.w_raw, p_.k, p_.v, p_.a, p_.b, p_.sa, q.d_y});
      }
      ValuesGrad(q);
      ScoresGrad();
      InputsGrad();
      Store(q);
      StateGrad();
      Swap(S_, next_S_);
      Swap(G_, next_G_);
    }
    Ops::Copy(NN, G_, q.d_state + task * NN);
  }

 private:
  static void Swap(Real*& a, Real*& b) {
    Real* t = a;
    a = b;
    b = t;
  }

  int64_t Offset(int64_t i) const { return base_offset_ + i * p_.H * N_; }

  void LoadRows(const Real* from, Real* to) const {
    for (int64_t i = 0; i < count_; ++i) Ops::Copy(N_, from + Offset(i), to + i * N_);
    for (int64_t i = count_ * N_; i < kChunk * N_; ++i) to[i] = 0;
  }

  // Asks for a chunk's rows of these arrays: they lie H * N apart, which no hardware foresees.
  void Prefetch(int64_t task, int64_t chunk, std::initializer_list<const Real*> arrays) const {
    const int64_t rest = p_.T - chunk * kChunk, count = rest < kChunk ? rest : kChunk;
    const int64_t first = task / p_.H * p_.T + chunk * kChunk;
    for (const Real* array : arrays) {
      for (int64_t i = 0; i < count; ++i) {
        const Real* row = array + ((first + i) * p_.H + task % p_.H) * N_;
        for (int64_t n = 0; n < N_; n += 64 / sizeof(Real)) __builtin_prefetch(row + n);
      }
    }
  }

  // Product of the chunk's decays before token i, and including it.
  Real* Before(int64_t i) const { return decay_ + i * N_; }
  Real* Including(int64_t i) const { return decay_ + (i + 1) * N_; }
  // Whether the state before the chunk reaches its end.
  bool Carries() const { return document_[kChunk - 1] == 0; }

  // Reads the chunk's tokens: documents, decays, left, right, ends and the V half of values.
  void Load(int64_t task, int64_t chunk) {
    const int64_t first = task / p_.H * p_.T + chunk * kChunk;
    const int64_t rest = p_.T - chunk * kChunk;
    count_ = rest < kChunk ? rest : kChunk;
    base_offset_ = (first * p_.H + task % p_.H) * N_;
    LoadDocuments(first);
    LoadRows(p_.v, values_ + kChunk * N_);
    for (int64_t i = 0; i < count_; ++i) LoadToken(i);
    for (int64_t i = count_; i < kChunk; ++i) LoadNothing(i);
    const Real* __restrict last = Including(kChunk - 1);
    for (int64_t i = 0; i < kTwo; ++i) {
      // A key of an earlier document does not reach the end of the chunk.
      const Real reaches = document_[i % kChunk] == document_[kChunk - 1] ? 1 : 0;
      const Real* __restrict from = right_ + i * N_;
      Real* __restrict to = ends_ + i * N_;
      for (int64_t n = 0; n < N_; ++n) to[n] = reaches * from[n] * last[n];
    }
    for (int64_t n = 0; n < N_; ++n) carry_[n] = Carries() ? last[n] : 0;
  }

  void LoadDocuments(int64_t first) {
    const bool had_resets = !Carries();
    int document = 0;
    for (int64_t i = 0; i < kChunk; ++i) {
      resets_[i] = i < count_ && p_.reset != nullptr && p_.reset[first + i];
      document += resets_[i];
      document_[i] = document;
    }
    if (had_resets || document != 0) FillMask();
  }

  // 1 where row i may see column j: only earlier tokens (rows of r~ also their own) of the same
  // document.
  void FillMask() {
    for (int64_t i = 0; i < kTwo; ++i) {
      const int64_t token = i % kChunk, end = i < kChunk ? token : token + 1;
      for (int64_t j = 0; j < kTwo; ++j) {
        const int64_t other = j % kChunk;
        mask_[i * kTwo + j] = other < end && document_[other] == document_[token] ? 1 : 0;
      }
    }
  }

  void LoadToken(int64_t i) {
    const int64_t at = Offset(i);
    const Real *a_in = p_.a + at, *r_in = p_.r + at, *b_in = p_.b + at, *k_in = p_.k + at;
    Real *a = left_ + i * N_, *r = left_ + (kChunk + i) * N_;
    Real *b = right_ + i * N_, *k = right_ + (kChunk + i) * N_;
    const Real* Q = Before(i);
    Real* P = Including(i);
    Ops::Decay(N_, p_.w_raw + at, sigma_ + i * N_, P);
    SKEIN_ARRAYS_DO_NOT_OVERLAP
    for (int64_t n = 0; n < N_; ++n) {
      P[n] *= Q[n];
      const Real inverse = 1 / P[n];
      a[n] = a_in[n] * Q[n];
      r[n] = r_in[n] * P[n];
      b[n] = b_in[n] * inverse;
      k[n] = k_in[n] * inverse;
    }
  }

  // A token that fills up the last chunk: w = 1, the rest 0.
  void LoadNothing(int64_t i) {
    Ops::Copy(N_, Before(i), Including(i));
    for (int64_t n = 0; n < N_; ++n) {
      left_[i * N_ + n] = left_[(kChunk + i) * N_ + n] = 0;
      right_[i * N_ + n] = right_[(kChunk + i) * N_ + n] = 0;
    }
  }

  void Mask(Real* __restrict A) const {
    const Real* __restrict mask = mask_;
    for (int64_t i = 0; i < kTwo * kTwo; ++i) A[i] *= mask[i];
  }

  // Rows of tokens that do not see the state before the chunk become zero. `rows` is [L, N].
  void MaskState(Real* rows) const {
    if (Carries()) return;
    for (int64_t i = 0; i < kChunk; ++i) {
      if (document_[i] == 0) continue;
      for (int64_t n = 0; n < N_; ++n) rows[i * N_ + n] = 0;
    }
  }

  void Scores() {
    Ops::Transpose(kTwo, N_, right_, N_, transposed_, kTwo);
    Ops::Gemm(kTwo, kTwo, N_, left_, N_, 1, transposed_, kTwo, A_, kTwo, false);
    Mask(A_);
  }

  // values' U half by forward substitution; base = r~ St.
  void Values() {
    Ops::Gemm(kChunk, N_, N_, left_, N_, 1, state_, N_, values_, N_, false);
    Ops::Gemm(kChunk, N_, N_, left_ + kChunk * N_, N_, 1, state_, N_, base_, N_, false);
    MaskState(values_);
    MaskState(base_);
    const Real* V = values_ + kChunk * N_;
    Ops::Gemm(kChunk, N_, kChunk, A_ + kChunk, kTwo, 1, V, N_, values_, N_, true);
    for (int64_t i = 1; i < kChunk; ++i) {
      Ops::AddRow(N_, i, A_ + i * kTwo, 1, values_, N_, values_ + i * N_);
    }
  }

  void NextState() {
    for (int64_t i = 0; i < N_; ++i) {
      for (int64_t n = 0; n < N_; ++n) state_[i * N_ + n] *= carry_[i];
    }
    Ops::Gemm(N_, N_, kTwo, ends_, 1, N_, values_, N_, state_, N_, true);
  }

  // d_out's first half becomes dX = (I - A_ab)^{-T} dU, by substitution from the last row back; its
  // second half holds dY.
  void ValuesGrad(const Wkv7Backward<Real>& q) {
    const Real *d_y = d_out_ + kChunk * N_, *A_r = A_ + kChunk * kTwo;
    Ops::Transpose(N_, N_, G_, N_, G_transposed_, N_);
    Ops::Gemm(kChunk, N_, N_, ends_, N_, 1, G_transposed_, N_, d_out_, N_, false);
    Ops::Gemm(kChunk, N_, kChunk, A_r, 1, kTwo, d_y, N_, d_out_, N_, true);
    for (int64_t j = kChunk - 2; j >= 0; --j) {
      Real* x = d_out_ + j * N_;
      Ops::AddRow(N_, kChunk - 1 - j, A_ + (j + 1) * kTwo + j, kTwo, x + N_, N_, x);
    }
    Ops::Gemm(kChunk, N_, N_, ends_ + kChunk * N_, N_, 1, G_transposed_, N_, base_, N_, false);
    Ops::Gemm(kChunk, N_, kChunk, A_r + kChunk, 1, kTwo, d_y, N_, base_, N_, true);
    Ops::Gemm(kChunk, N_, kChunk, A_ + kChunk, 1, kTwo, d_out_, N_, base_, N_, true);
    for (int64_t i = 0; i < count_; ++i) Ops::Copy(N_, base_ + i * N_, q.d_v + Offset(i));
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
    MaskState(d_out_);
    MaskState(d_out_ + kChunk * N_);
    Ops::Gemm(kTwo, N_, N_, d_out_, N_, 1, S_, N_, d_left_, N_, true);
    Ops::Gemm(kTwo, N_, N_, values_, N_, 1, G_, N_, d_ends_, N_, false);
    const Real* __restrict last = Including(kChunk - 1);
    for (int64_t i = 0; i < kTwo; ++i) {
      if (document_[i % kChunk] != document_[kChunk - 1]) continue;
      const Real* __restrict from = d_ends_ + i * N_;
      Real* __restrict to = d_right_ + i * N_;
      for (int64_t n = 0; n < N_; ++n) to[n] += last[n] * from[n];
    }
  }

  // Undoes the scaling by decays, and sums up the gradient of log w from the last token back:
  //   dlogw_t = colsum(dS' S') + sum_{s >= t} (r dr - k dk - b db) + sum_{s > t} a da
  // Both sums are over one document; across a reset they are exactly zero.
  void Store(const Wkv7Backward<Real>& q) {
    Real* __restrict d_log_w = transposed_;
    for (int64_t n = 0; n < N_; ++n) d_log_w[n] = 0;
    for (int64_t i = 0; i < N_; ++i) {
      const Real *G = G_ + i * N_, *S = next_S_ + i * N_;
      for (int64_t n = 0; n < N_; ++n) d_log_w[n] += G[n] * S[n];
    }
    for (int64_t i = count_ - 1; i >= 0; --i) StoreToken(q, i, d_log_w);
  }

  void StoreToken(const Wkv7Backward<Real>& q, int64_t i, Real* d_log_w) {
    const int64_t at = Offset(i);
    const Real *P = Including(i), *Q = Before(i), *sigma = sigma_ + i * N_;
    const Real *left_a = d_left_ + i * N_, *left_r = d_left_ + (kChunk + i) * N_;
    const Real *right_b = d_right_ + i * N_, *right_k = d_right_ + (kChunk + i) * N_;
    const Real *r = p_.r + at, *k = p_.k + at, *a = p_.a + at, *b = p_.b + at;
    Real *d_r = q.d_r + at, *d_k = q.d_k + at, *d_a = q.d_a + at, *d_b = q.d_b + at;
    Real* d_w_raw = q.d_w_raw + at;
    const Real keep = resets_[i] ? 0 : 1;
    SKEIN_ARRAYS_DO_NOT_OVERLAP
    for (int64_t n = 0; n < N_; ++n) {
      const Real inverse = 1 / P[n];
      const Real da = left_a[n] * Q[n], dr = left_r[n] * P[n];
      const Real db = right_b[n] * inverse, dk = right_k[n] * inverse;
      const Real d = d_log_w[n] + r[n] * dr - k[n] * dk - b[n] * db;
      d_a[n] = da;
      d_r[n] = dr;
      d_b[n] = db;
      d_k[n] = dk;
      d_w_raw[n] = d * -kDecayScale * sigma[n] * (1 - sigma[n]);
      d_log_w[n] = keep * (d + a[n] * da);
    }
  }

  // next_G = dS before the chunk.
  void StateGrad() {
    for (int64_t i = 0; i < N_; ++i) {
      const Real* __restrict from = G_ + i * N_;
      Real* __restrict to = next_G_ + i * N_;
      for (int64_t n = 0; n < N_; ++n) to[n] = from[n] * carry_[n];
    }
    Ops::Gemm(N_, N_, kTwo, d_out_, 1, N_, left_, N_, next_G_, N_, true);
  }

  const Wkv7Forward<Real>& p_;
  const int64_t N_, chunks_;
  Scratch<Real> memory_;
  int64_t count_ = 0;        // tokens of this chunk
  int64_t base_offset_ = 0;  // of its first token in the [R, C] arrays
  bool resets_[kChunk] = {};
  int document_[kChunk] = {};              // number of resets up to and including each token
  Real *left_, *right_, *ends_, *values_;  // [2L, N]
  Real* base_;                             // [L, N] Y, or dV
  Real* transposed_;                       // [N, 2L]
  Real* decay_;                            // [L + 1, N] products of decays, row 0 is 1
  Real* carry_;                            // [N] the last of them, 0 behind a reset
  Real* sigma_;                            // [L, N]
  Real *A_, *mask_;                        // [2L, 2L]
  Real* state_;                            // [key, value]
  Real *d_A_, *d_out_, *d_left_, *d_right_, *d_ends_;
  Real *S_, *next_S_, *G_, *next_G_, *G_transposed_;  // [value, key]; before and after the chunk
};

}  // namespace
}  // namespace skein::kernels::train
