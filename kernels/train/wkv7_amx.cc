// WKV-7 in chunks of 16 tokens (wkv7_chunk.h has the formulae) with its products on AMX, for heads
// of a multiple of 32 channels and sequences in which no document begins; the others are AVX-512's.
// Training in bf16 takes it, and the engine for prompts where asked
// (kernels/cpu/wkv7_chunked_amx.cc); it is no fp32: over tens of steps gradients drift from that.
//
// Every matrix goes to tiles (split_tiles_amx.h) straight from the registers in which it was
// scaled: left = a~ over r~ and right = b~ over k~ never lie in memory as fp32. St and the gradient
// G = dSt of the state stay in fp32, [key, value]; that P_L scales them at a chunk's end is done
// when they are next read. As P_L scales all of a key's row,
//
//   St' = P_L (St + right^T values),    dU over dV = right (P_L G) + A^T (dX over dY)
//
// need no `ends`. The triangular solves are forward substitutions in fp32, of 16 columns at a time
// in registers, with the products that feed them.

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "kernels/cpu/scratch.h"
#include "kernels/train/avx512.h"
#include "kernels/train/split_tiles_amx.h"

namespace skein::kernels::train {
namespace {

constexpr int64_t L = kChunk, kTwo = 2 * L;
constexpr float kDecayScale = 0.60653065971263342f;  // e^{-1/2}
static_assert(L == 16);

__m512 Load(const float* x) { return _mm512_loadu_ps(x); }
void Store(float* x, __m512 value) { _mm512_storeu_ps(x, value); }

// The first n lanes.
__mmask16 First(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
// Columns that row i of A's upper half (a~) or lower half (r~) sees: earlier tokens, or also i.
__mmask16 Earlier(int64_t i) { return First(i); }
__mmask16 UpTo(int64_t i) { return First(i + 1); }

// to [N, N] = the transposition of `from`.
void TransposeSquare(int64_t N, const float* from, float* to) {
  for (int64_t i = 0; i < N; i += 16) {
    for (int64_t j = 0; j < N; j += 16) {
      __m512i rows[16];
      for (int64_t r = 0; r < 16; ++r) rows[r] = _mm512_loadu_si512(from + (i + r) * N + j);
      Transpose(rows);
      for (int64_t r = 0; r < 16; ++r) _mm512_storeu_si512(to + (j + r) * N + i, rows[r]);
    }
  }
}

class AmxChunk {
 public:
  AmxChunk(const Wkv7Forward<float>& p, bool backward, bool of_decays = false)
      : p_(p), N_(p.N), chunks_((p.T + L - 1) / L), of_decays_(of_decays) {
    const int64_t wide = kTwo * N_, square = N_ * N_, small = kTwo * kTwo;
    next_ = ThreadScratch(backward ? 11 * wide + 4 * small + 5 * square + 34 * N_
                                   : 6 * wide + 2 * small + 2 * square + N_);
    const auto floats = [this](int64_t n) { return std::exchange(next_, next_ + n); };
    const auto tiles = [&](int64_t lines, int64_t K) {
      return Tiles{reinterpret_cast<uint32_t*>(floats(lines * K)), K / 32};
    };
    left_rows_ = tiles(kTwo, N_), right_rows_ = tiles(kTwo, N_), right_pairs_ = tiles(N_, kTwo);
    values_ = floats(wide), out_ = floats(wide);
    A_ = floats(small), A_rows_ = tiles(kTwo, kTwo);
    state_ = floats(square), state_pairs_ = tiles(N_, N_);
    carry_ = floats(N_);
    if (!backward) {
      values_pairs_ = tiles(N_, kTwo);
      return;
    }
    left_pairs_ = tiles(N_, kTwo);
    values_rows_ = tiles(kTwo, N_), values_columns_ = tiles(kTwo, N_);
    d_out_ = floats(wide), d_out_rows_ = tiles(kTwo, N_), d_out_pairs_ = tiles(N_, kTwo);
    d_A_ = floats(small), d_A_pairs_ = tiles(kTwo, kTwo);
    after_ = floats(square), G_rows_ = tiles(N_, N_), G_pairs_ = tiles(N_, N_);
    P_ = floats(L * N_), sigma_ = floats(L * N_), d_log_w_ = floats(N_);
  }

  void Forward(int64_t task) {
    const int64_t square = N_ * N_;
    if (p_.state != nullptr) {
      TransposeSquare(N_, p_.state + task * square, state_);
    } else {
      std::fill_n(state_, square, 0.0f);
    }
    std::fill_n(carry_, N_, 1.0f);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      SetChunk(task, chunk);
      PackState(p_.chunk_states != nullptr ? p_.chunk_states + (task * chunks_ + chunk) * square
                                           : nullptr);
      LoadTokens<false>();
      LoadRows(p_.v, values_ + L * N_);
      if (chunk + 1 < chunks_) Prefetch(task, chunk + 1, {p_.r, p_.w_raw, p_.k, p_.v, p_.a, p_.b});
      Values();
      StoreRows(out_ + L * N_, p_.y);
      if (p_.sa != nullptr) StoreRows(values_, p_.sa);
      TransposeTiles(right_pairs_, N_ / 16, right_pairs_);
      Multiply(right_pairs_, N_ / 16, values_pairs_, N_ / 16, state_, N_, true);
    }
    ScaleState();
    TransposeSquare(N_, state_, p_.final_state + task * square);
  }

  void Backward(const Wkv7Backward<float>& q, int64_t task) {
    const int64_t square = N_ * N_;
    float* G = state_;
    if (q.d_final_state != nullptr) {
      TransposeSquare(N_, q.d_final_state + task * square, G);
    } else {
      std::fill_n(G, square, 0.0f);
    }
    TransposeSquare(N_, p_.final_state + task * square, after_);
    const float* after = after_;
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      const float* before = p_.chunk_states + (task * chunks_ + chunk) * square;
      SetChunk(task, chunk);
      LoadTokens<true>();
      LoadRows(p_.sa, values_);
      LoadRows(p_.v, values_ + L * N_);
      LoadRows(q.d_y, d_out_ + L * N_);
      if (chunk > 0) {
        Prefetch(task, chunk - 1, {p_.r, p_.w_raw, p_.k, p_.v, p_.a, p_.b, p_.sa, q.d_y});
      }
      PackGradient(after);
      ValuesGrad();
      StoreRows(out_ + L * N_, q.d_v);
      ScoresGrad();
      InputsGrad(before);
      StoreTokens(q);
      TransposeTiles(left_pairs_, N_ / 16, left_pairs_);
      Multiply(left_pairs_, N_ / 16, d_out_pairs_, N_ / 16, G, N_, true);
      after = before;
    }
    TransposeSquare(N_, G, q.d_state + task * square);
  }

 private:
  void SetChunk(int64_t task, int64_t chunk) {
    count_ = std::min(L, p_.T - chunk * L);
    base_offset_ = Offset(task, chunk, 0);
  }
  int64_t Offset(int64_t task, int64_t chunk, int64_t i) const {
    return ((task / p_.H * p_.T + chunk * L + i) * p_.H + task % p_.H) * N_;
  }
  int64_t Offset(int64_t i) const { return base_offset_ + i * p_.H * N_; }

  // Asks for a chunk's rows of these arrays: they lie H * N apart, which no hardware foresees.
  void Prefetch(int64_t task, int64_t chunk, std::initializer_list<const float*> arrays) const {
    const int64_t count = std::min(L, p_.T - chunk * L);
    for (const float* array : arrays) {
      for (int64_t i = 0; i < count; ++i) {
        const float* row = array + Offset(task, chunk, i);
        for (int64_t n = 0; n < N_; n += 16) __builtin_prefetch(row + n);
      }
    }
  }

  // Rows of tokens that fill up the last chunk are zero.
  void LoadRows(const float* from, float* to) const {
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t n = 0; n < N_; n += 16) Store(to + i * N_ + n, Load(from + Offset(i) + n));
    }
    std::fill(to + count_ * N_, to + L * N_, 0.0f);
  }
  void StoreRows(const float* from, float* to) const {
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t n = 0; n < N_; n += 16) Store(to + Offset(i) + n, Load(from + i * N_ + n));
    }
  }

  // 16 channels of one token's left and right.
  struct Scaled {
    __m512 a, r, b, k;
  };

  // The chunk's tokens as tiles of left and right; carry = P_L.
  template <bool kBackward>
  void LoadTokens() const {
    const float *w_raw = p_.w_raw, *a = p_.a, *r = p_.r, *b = p_.b, *k = p_.k;
    float *P = P_, *sigma = sigma_;
    // 16 channels of token i: Q is the product of decays before it, then including it.
    const auto load = [=, this](int64_t i, int64_t n, __m512* Q) {
      const int64_t at = Offset(i) + n;
      const __m512 s = of_decays_ ? _mm512_setzero_ps() : Sigmoid(Load(w_raw + at)),
                   w = of_decays_ ? Load(w_raw + at) : Exp(_mm512_set1_ps(-kDecayScale) * s);
      const __m512 now = *Q * w, inverse = Reciprocal(now);
      if (kBackward) {
        Store(sigma + i * N_ + n, s);
        Store(P + i * N_ + n, now);
      }
      const Scaled x = {Load(a + at) * *Q, Load(r + at) * now, Load(b + at) * inverse,
                        Load(k + at) * inverse};
      *Q = now;
      return x;
    };
    for (int64_t n = 0; n < N_; n += 32) {
      __m512 Q[2] = {_mm512_set1_ps(1), _mm512_set1_ps(1)};
      for (int64_t i = 0; i < L; ++i) {
        Scaled x[2] = {};
        if (i < count_) {
          x[0] = load(i, n, &Q[0]);
          x[1] = load(i, n + 16, &Q[1]);
        }
        left_rows_.Put(0, n / 32, i, Split(x[0].a, x[1].a));
        left_rows_.Put(1, n / 32, i, Split(x[0].r, x[1].r));
        right_rows_.Put(0, n / 32, i, Split(x[0].b, x[1].b));
        right_rows_.Put(1, n / 32, i, Split(x[0].k, x[1].k));
        for (int64_t j = 0; j < 2; ++j) {
          right_pairs_.Put(n / 16 + j, 0, i, Split(x[j].b, x[j].k));
          if (kBackward) left_pairs_.Put(n / 16 + j, 0, i, Split(x[j].a, x[j].r));
        }
      }
      Store(carry_ + n, Q[0]);
      Store(carry_ + n + 16, Q[1]);
    }
  }

  // X [2L, N] as the left factor, and, its halves being pairs, as the right one.
  void PackRows(const float* X, const Tiles& rows) const {
    for (int64_t i = 0; i < kTwo; ++i) {
      for (int64_t n = 0; n < N_; n += 32) {
        const float* x = X + i * N_ + n;
        rows.Put(i / L, n / 32, i % L, Split(Load(x), Load(x + 16)));
      }
    }
  }
  void PackPairs(const float* X, const Tiles& pairs) const {
    for (int64_t i = 0; i < L; ++i) {
      for (int64_t n = 0; n < N_; n += 16) {
        const float* x = X + i * N_ + n;
        pairs.Put(n / 16, 0, i, Split(Load(x), Load(x + L * N_)));
      }
    }
  }

  // The state's rows get the scale of the chunk before, and go to `copy`, which may be null, and to
  // tiles.
  void PackState(float* copy) {
    for (int64_t row = 0; row < N_; row += 32) {
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t n[2] = {row + i, row + i + 16};
        for (int64_t v = 0; v < N_; v += 16) {
          __m512 x[2];
          for (int j = 0; j < 2; ++j) {
            x[j] = Load(state_ + n[j] * N_ + v) * _mm512_set1_ps(carry_[n[j]]);
            Store(state_ + n[j] * N_ + v, x[j]);
            if (copy != nullptr) Store(copy + n[j] * N_ + v, x[j]);
          }
          state_pairs_.Put(v / 16, row / 32, i, Split(x[0], x[1]));
        }
      }
    }
  }
  void ScaleState() {
    for (int64_t n = 0; n < N_; ++n) {
      float* row = state_ + n * N_;
      for (int64_t v = 0; v < N_; v += 16)
        Store(row + v, Load(row + v) * _mm512_set1_ps(carry_[n]));
    }
  }

  // values' U half, and Y as out's lower half.
  void Values() {
    TransposeTiles(right_rows_, 2, right_rows_);
    Multiply(left_rows_, 2, right_rows_, 2, A_, kTwo, false);
    Multiply(left_rows_, 2, state_pairs_, N_ / 16, out_, N_, false);
    for (int64_t n = 0; n < N_; n += 16) SolveValues(n);
    PackPairs(values_, values_pairs_);
    for (int64_t i = 0; i < L; ++i) {
      const float* row = A_ + (L + i) * kTwo;
      A_rows_.Put(
          0, 0, i,
          Split(_mm512_maskz_loadu_ps(UpTo(i), row), _mm512_maskz_loadu_ps(UpTo(i), row + L)));
    }
    Multiply(A_rows_, 1, values_pairs_, N_ / 16, out_ + L * N_, N_, true);
  }

  // U = (I - A_ab)^{-1} (A_ak V + a~ St), 16 columns of it.
  void SolveValues(int64_t n) {
    __m512 u[L];
#pragma GCC unroll 16
    for (int64_t i = 0; i < L; ++i) u[i] = Load(out_ + i * N_ + n);
#pragma GCC unroll 16
    for (int64_t j = 0; j < L; ++j) {
      const __m512 v = Load(values_ + (L + j) * N_ + n);
#pragma GCC unroll 16
      for (int64_t i = j + 1; i < L; ++i) {
        u[i] = _mm512_fmadd_ps(_mm512_set1_ps(A_[i * kTwo + L + j]), v, u[i]);
        u[i] = _mm512_fmadd_ps(_mm512_set1_ps(A_[i * kTwo + j]), u[j], u[i]);
      }
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < L; ++i) Store(values_ + i * N_ + n, u[i]);
  }

  // G's rows, whose sums with the state after the chunk begin the gradient of log w, get the scale
  // P_L, and go to tiles as they are and transposed.
  void PackGradient(const float* after) {
    float* G = state_;
    for (int64_t block = 0; block < N_; block += 16) {
      __m512i sums[16];
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t n = block + i;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t v = 0; v < N_; v += 32) {
          __m512 x[2];
          for (int j = 0; j < 2; ++j) {
            float* g = G + n * N_ + v + 16 * j;
            x[j] = Load(g);
            sum = _mm512_fmadd_ps(x[j], Load(after + n * N_ + v + 16 * j), sum);
            x[j] *= _mm512_set1_ps(carry_[n]);
            Store(g, x[j]);
          }
          G_rows_.Put(block / 16, v / 32, i, Split(x[0], x[1]));
        }
        sums[i] = _mm512_castps_si512(sum);
      }
      Transpose(sums);
      __m512 total = _mm512_setzero_ps();
      for (const __m512i& sum : sums) total += _mm512_castsi512_ps(sum);
      Store(d_log_w_ + block, total);
    }
    TransposeTiles(G_rows_, N_ / 16, G_rows_);
    for (int64_t row = 0; row < N_; row += 32) {
      for (int64_t i = 0; i < 16; ++i) {
        const float* g = G + (row + i) * N_;
        for (int64_t v = 0; v < N_; v += 16) {
          G_pairs_.Put(v / 16, row / 32, i, Split(Load(g + v), Load(g + 16 * N_ + v)));
        }
      }
    }
  }

  // d_out = dX over dY with dX = (I - A_ab)^{-T} dU; dV as out's lower half. A holds A^T here.
  void ValuesGrad() {
    TransposeTiles(left_rows_, 2, left_rows_);
    Multiply(right_rows_, 2, left_rows_, 2, A_, kTwo, false);
    Multiply(right_rows_, 2, G_pairs_, N_ / 16, out_, N_, false);
    for (int64_t n = 0; n < N_; n += 16) SolveValuesGrad(n);
    PackPairs(d_out_, d_out_pairs_);
    PackRows(d_out_, d_out_rows_);
    for (int64_t j = 0; j < L; ++j) {
      const float* row = A_ + (L + j) * kTwo;  // of k~ and token j: what later tokens see of it
      A_rows_.Put(0, 0, j,
                  Split(_mm512_maskz_loadu_ps(_knot_mask16(UpTo(j)), row),
                        _mm512_maskz_loadu_ps(_knot_mask16(Earlier(j)), row + L)));
    }
    Multiply(A_rows_, 1, d_out_pairs_, N_ / 16, out_ + L * N_, N_, true);
  }

  // dU = b~ (P_L G) + A_rb^T dY, then the substitution from the last token back.
  void SolveValuesGrad(int64_t n) {
    __m512 x[L];
#pragma GCC unroll 16
    for (int64_t j = 0; j < L; ++j) x[j] = Load(out_ + j * N_ + n);
#pragma GCC unroll 16
    for (int64_t i = L - 1; i >= 0; --i) {
      const __m512 d_y = Load(d_out_ + (L + i) * N_ + n);
#pragma GCC unroll 16
      for (int64_t j = 0; j <= i; ++j) {
        x[j] = _mm512_fmadd_ps(_mm512_set1_ps(A_[j * kTwo + L + i]), d_y, x[j]);
      }
#pragma GCC unroll 16
      for (int64_t j = 0; j < i; ++j) {
        x[j] = _mm512_fmadd_ps(_mm512_set1_ps(A_[j * kTwo + i]), x[i], x[j]);
      }
    }
#pragma GCC unroll 16
    for (int64_t j = 0; j < L; ++j) Store(d_out_ + j * N_ + n, x[j]);
  }

  void ScoresGrad() {
    PackRows(values_, values_rows_);
    TransposeTiles(values_rows_, 2, values_columns_);
    Multiply(d_out_rows_, 2, values_columns_, 2, d_A_, kTwo, false);
    for (int64_t i = 0; i < L; ++i) {
      const float *a = d_A_ + i * kTwo, *r = a + L * kTwo;
      const __m512 a_b = _mm512_maskz_loadu_ps(Earlier(i), a),
                   a_k = _mm512_maskz_loadu_ps(Earlier(i), a + L),
                   r_b = _mm512_maskz_loadu_ps(UpTo(i), r),
                   r_k = _mm512_maskz_loadu_ps(UpTo(i), r + L);
      A_rows_.Put(0, 0, i, Split(a_b, a_k));
      A_rows_.Put(1, 0, i, Split(r_b, r_k));
      d_A_pairs_.Put(0, 0, i, Split(a_b, r_b));
      d_A_pairs_.Put(1, 0, i, Split(a_k, r_k));
    }
    TransposeTiles(d_A_pairs_, 2, d_A_pairs_);
  }

  // Gradients of left and right; `before` is the state before the chunk.
  void InputsGrad(const float* before) {
    for (int64_t n = 0; n < N_; ++n) {
      for (int64_t v = 0; v < N_; v += 32) {
        const float* x = before + n * N_ + v;
        state_pairs_.Put(n / 16, v / 32, n % 16, Split(Load(x), Load(x + 16)));
      }
    }
    TransposeTiles(state_pairs_, N_ / 16, state_pairs_);
    Multiply(A_rows_, 2, right_pairs_, N_ / 16, out_, N_, false);
    Multiply(d_out_rows_, 2, state_pairs_, N_ / 16, out_, N_, true);
    Multiply(d_A_pairs_, 2, left_pairs_, N_ / 16, d_out_, N_, false);
    Multiply(values_rows_, 2, G_rows_, N_ / 16, d_out_, N_, true);
  }

  // Undoes the scaling by decays, and sums up the gradient of log w from the last token back:
  //   dlogw_t = colsum(dS' S') + sum_{s >= t} (r dr - k dk - b db) + sum_{s > t} a da
  void StoreTokens(const Wkv7Backward<float>& q) const {
    const __m512 one = _mm512_set1_ps(1);
    const float *r = p_.r, *k = p_.k, *a = p_.a, *b = p_.b, *d_left = out_, *d_right = d_out_;
    float *d_r = q.d_r, *d_w = q.d_w_raw, *d_k = q.d_k, *d_a = q.d_a, *d_b = q.d_b;
    for (int64_t i = count_ - 1; i >= 0; --i) {
      for (int64_t n = 0; n < N_; n += 16) {
        const int64_t at = Offset(i) + n, row = i * N_ + n;
        const __m512 P = Load(P_ + row), Q = i > 0 ? Load(P_ + row - N_) : one,
                     sigma = Load(sigma_ + row), inverse = Reciprocal(P);
        const __m512 da = Load(d_left + row) * Q, dr = Load(d_left + L * N_ + row) * P,
                     db = Load(d_right + row) * inverse,
                     dk = Load(d_right + L * N_ + row) * inverse;
        const __m512 d_log_w =
            Load(d_log_w_ + n) + Load(r + at) * dr - Load(k + at) * dk - Load(b + at) * db;
        Store(d_log_w_ + n, d_log_w + Load(a + at) * da);
        Store(d_a + at, da);
        Store(d_r + at, dr);
        Store(d_b + at, db);
        Store(d_k + at, dk);
        Store(d_w + at, d_log_w * _mm512_set1_ps(-kDecayScale) * sigma * (one - sigma));
      }
    }
  }

  const Wkv7Forward<float>& p_;
  const int64_t N_, chunks_;
  const bool of_decays_;     // w_raw is w
  float* next_;              // of the scratch memory, while it is cut
  int64_t count_ = 0;        // tokens of this chunk
  int64_t base_offset_ = 0;  // of its first token in the [R, C] arrays
  // As left factors (rows) and as right ones over pairs of tokens or of keys (pairs). Most become
  // their own transposition when they are no longer needed as they are.
  Tiles left_rows_, left_pairs_, right_rows_, right_pairs_, values_rows_, values_columns_;
  Tiles values_pairs_, state_pairs_, A_rows_, d_A_pairs_, d_out_rows_, d_out_pairs_;
  Tiles G_rows_, G_pairs_;
  float *A_, *d_A_;    // [2L, 2L]
  float* values_;      // [2L, N] U over V
  float* out_;         // [2L, N] a~ St over Y; backward dU over dV, then the gradient of left
  float* d_out_;       // [2L, N] dX over dY, then the gradient of right
  float* carry_;       // [N] P_L
  float* state_;       // [key, value]: St, in the backward pass its gradient G
  float* after_;       // [key, value] the final state
  float *P_, *sigma_;  // [L, N]
  float* d_log_w_;     // [N]
};

bool FitsTiles(const Wkv7Forward<float>& p) { return p.N % 32 == 0 && p.reset == nullptr; }

}  // namespace

void AmxWkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end) {
  if (!FitsTiles(p)) return Avx512Wkv7(p, begin, end);
  ConfigureTiles(16);
  AmxChunk chunk(p, false);
  for (int64_t task = begin; task < end; ++task) chunk.Forward(task);
  _tile_release();
}

void AmxWkv7OfDecays(const Wkv7Forward<float>& p, int64_t begin, int64_t end) {
  ConfigureTiles(16);
  AmxChunk chunk(p, false, true);
  for (int64_t task = begin; task < end; ++task) chunk.Forward(task);
  _tile_release();
}

void AmxWkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end) {
  if (!FitsTiles(q.forward)) return Avx512Wkv7Grad(q, begin, end);
  ConfigureTiles(16);
  AmxChunk chunk(q.forward, true);
  for (int64_t task = begin; task < end; ++task) chunk.Backward(q, task);
  _tile_release();
}

}  // namespace skein::kernels::train
