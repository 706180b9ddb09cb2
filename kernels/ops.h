#pragma once
// Every RWKV operator of the engine: one params struct each, raw device pointers with their shapes,
// no LibTorch type, no allocation. kernels/cpu/plain.cc is the specification (a loop as the formula
// reads); every other implementation is tested against it. Mathematics: RWKV-7 ("x070").
//
// Letters: R rows (sequences) of a ragged batch, T tokens of all rows together, C width, H heads of
// N, V vocabulary rows, K inputs and O outputs of a matrix, M mixes. All activations are fp32;
// every pointer is 64-byte aligned unless it says otherwise. An output never overlaps an input
// unless it says so.
//
// A row's result does not depend on its neighbours, on the number of threads, or on where its
// tokens were cut into steps: each output element is computed by the same sequence of operations in
// all of these cases.

#include <cstdint>

#include "kernels/device.h"

namespace skein::kernels {

// kI8 and kI8A8 are for packed weights alone: q * scale, one scale for each output and 64 inputs.
// With kI8A8 a product takes its x in 8 bits too.
enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2, kI8 = 3, kI8A8 = 4 };
inline constexpr bool IsInt8(DType t) { return t == DType::kI8 || t == DType::kI8A8; }
inline constexpr int64_t SizeOf(DType t) { return t == DType::kF32 ? 4 : (IsInt8(t) ? 1 : 2); }

// A ragged batch: row r owns tokens [offsets[r], offsets[r+1]), at least one, in order of time, and
// the state in slot slots[r] (distinct among the rows). Prefill chunks and single decode tokens
// stand side by side.
struct Ragged {
  int32_t num_rows = 0;              // R
  int32_t num_tokens = 0;            // T = offsets[R]
  const int32_t* offsets = nullptr;  // [R+1]
  const int32_t* slots = nullptr;    // [R]
  const int32_t* row_of = nullptr;   // [T] the row of each token
};

// A part of every slot's state: slot s has it at base + s * stride (floats).
struct StateView {
  float* base = nullptr;
  int64_t stride = 0;
};

// x[t] = LayerNorm(embedding[token[t]]; ln0). Overwrites x.
struct EmbedParams {
  const int32_t* tokens = nullptr;  // [T], each in [0, V)
  int32_t num_tokens = 0;
  const void* embedding = nullptr;  // [V, C] dtype
  DType dtype = DType::kF32;
  const float* ln_weight = nullptr;  // [C]
  const float* ln_bias = nullptr;    // [C]
  float eps = 1e-5f;
  int32_t C = 0;
  float* x = nullptr;  // [T, C]
};

// Residual add, LayerNorm, token shift, M mixes:
//   x[t] += delta[t] (delta may be null);  n[t] = LN(x[t]);  prev = n[t-1], or the state for a
//   row's first token out[m][t] = n[t] + (prev - n[t]) * mix[m];   state <- n of the row's last
//   token
// Updates x and the state in place, overwrites normed (scratch) and out.
struct AddNormMixParams {
  Ragged batch;
  int32_t C = 0;
  int32_t M = 0;                     // 6 before time mix, 1 before channel mix
  float* x = nullptr;                // [T, C]
  const float* delta = nullptr;      // [T, C] or null
  const float* ln_weight = nullptr;  // [C]
  const float* ln_bias = nullptr;    // [C]
  float eps = 1e-5f;
  const float* mix = nullptr;  // [M, C]
  StateView shift;             // [C]
  float* normed = nullptr;     // [T, C]
  float* out = nullptr;        // [M, T, C]
};

// x[t] = LN(x[index[i]] + delta[index[i]]) for the tokens whose logits are wanted. Overwrites out.
struct FinalNormParams {
  const int32_t* index = nullptr;  // [n], tokens of the batch
  int32_t n = 0;
  int32_t C = 0;
  const float* x = nullptr;          // [T, C]
  const float* delta = nullptr;      // [T, C]
  const float* ln_weight = nullptr;  // [C]
  const float* ln_bias = nullptr;    // [C]
  float eps = 1e-5f;
  float* out = nullptr;  // [n, C]
};

// A weight matrix in the layout that a tier's matmul reads in order. Made once at load by
// OpTable::pack.
struct PackedMatrix {
  int32_t O = 0;
  int32_t K = 0;
  DType dtype = DType::kF32;   // kF32, kBF16, kI8 or kI8A8
  const void* data = nullptr;  // packed bytes, owned by the model's buffer
};

// Outputs [first, last) of a matrix may be packed alone, so that a large one is made in pieces;
// each begins at a multiple of this.
inline constexpr int32_t kPackRows = 64;

struct PackParams {
  // [last - first, K] row-major, or all of [K, O] when transposed; may be unaligned.
  const void* source = nullptr;
  DType source_dtype = DType::kF32;  // any but int8
  bool transposed = false;           // RWKV-7's low-rank matrices are stored [in, out]
  int32_t O = 0;
  int32_t K = 0;
  int32_t first = 0;
  int32_t last = 0;           // 0: O
  DType dtype = DType::kF32;  // to store: kF32, kBF16 (rounded to nearest even) or int8
  void* out = nullptr;        // of the whole matrix: packed_bytes(O, K, dtype) bytes

  int32_t end() const { return last > 0 ? last : O; }
};

enum class Activation : uint8_t { kNone, kTanh, kSigmoid, kReluSquared };

// y[t, o] = act(bias[o] + sum_k x[t, k] * w[o, k]). Overwrites y. When w is bf16 or int8, x is
// rounded to bf16 first; sums are fp32. int8: the sum over each 64 k of x * q is multiplied by its
// scale; those 64 of x are held in fixed point of 14 bits and a sign. kI8A8: those 64 of x become
// whole numbers of 8 bits times a 127th of the largest. Any T, O, K >= 1.
struct MatmulParams {
  const float* x = nullptr;  // [T, K], rows x_stride apart
  int64_t x_stride = 0;
  int32_t T = 0;
  PackedMatrix w;               // [O, K]
  const float* bias = nullptr;  // [O] or null
  Activation activation = Activation::kNone;
  float* y = nullptr;  // [T, O], rows y_stride apart
  int64_t y_stride = 0;
};

// Between the matrices and the recurrence; per token and head:
//   w = exp(-e^{-1/2} * sigmoid(w_raw));  gate = sigmoid(a_raw)
//   kk = (k * k_k) / max(||k * k_k||_2 over the head, 1e-12)
//   a = -kk;  b = kk * gate;  k <- k * (1 + (gate - 1) * k_a)
//   layer 0: v_first <- v;  else v <- v + (v_first - v) * sigmoid(v_raw)
struct PrepareParams {
  int32_t T = 0, H = 0, N = 0;   // C = H * N
  float* w = nullptr;            // [T, C] in: w_raw, out: w
  float* k = nullptr;            // [T, C] in and out
  float* v = nullptr;            // [T, C] in and out
  const float* a_raw = nullptr;  // [T, C]
  const float* v_raw = nullptr;  // [T, C]; null in layer 0
  float* v_first = nullptr;      // [T, C]; written in layer 0, read elsewhere
  const float* k_k = nullptr;    // [C]
  const float* k_a = nullptr;    // [C]
  float* a = nullptr;            // [T, C] out
  float* b = nullptr;            // [T, C] out
};

// WKV-7 over ragged rows, state in place, prefill and single step alike. Per head, S[N_value,
// N_key]:
//   S <- S diag(w) + (S a) b^T + v k^T;   y = S r      (y reads S after the update)
struct Wkv7Params {
  Ragged batch;
  int32_t H = 0, N = 0;
  const float* r = nullptr;  // [T, C] each
  const float* w = nullptr;
  const float* k = nullptr;
  const float* v = nullptr;
  const float* a = nullptr;
  const float* b = nullptr;
  StateView state;     // [H, N_value, N_key]
  float* y = nullptr;  // [T, C]
};

// out = (GroupNorm_H(y; eps) * ln_weight + ln_bias + (sum_n r k r_k) v per head) * g. out may be y.
struct NormBonusGateParams {
  int32_t T = 0, H = 0, N = 0;
  const float* y = nullptr;  // [T, C] each
  const float* r = nullptr;
  const float* k = nullptr;  // the modified k
  const float* v = nullptr;  // the modified v
  const float* g = nullptr;
  const float* r_k = nullptr;        // [H, N]
  const float* ln_weight = nullptr;  // [C]
  const float* ln_bias = nullptr;    // [C]
  float eps = 64e-5f;
  float* out = nullptr;  // [T, C]
};

// One token id with a number: a logit bias, or how often a token occurred.
struct TokenValue {
  int32_t token = 0;
  float value = 0;
};

// What one row of logits is sampled with. Order: bias and bans, penalties, temperature and the
// filters, draw.
struct SampleRow {
  float temperature = 1.0f;  // 0: greedy (ties: lowest id)
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // 1: off; smallest set with mass >= top_p
  float min_p = 0.0f;        // 0: off; keep p >= min_p * max p
  bool top_p_before_temperature =
      false;                   // filters look at probabilities before the temperature is applied
  float presence_penalty = 0;  // logit -= presence + frequency * count, for tokens in `counts`
  float frequency_penalty = 0;
  float repetition_penalty = 1.0f;  // logit > 0 ? logit / p : logit * p, for tokens in `counts`
  uint64_t seed = 0;                // the draw is a function of (seed, position) alone
  uint64_t position = 0;
  const TokenValue* counts = nullptr;  // [num_counts] decayed occurrences, distinct tokens
  int32_t num_counts = 0;
  const TokenValue* bias = nullptr;  // [num_bias] added; -infinity bans
  int32_t num_bias = 0;
  int32_t num_logprobs = 0;  // 0..kMaxTopLogprobs: how many of the most probable to report
  const uint32_t* mask =
      nullptr;  // [ceil(V/32)] bit set: token allowed; null: all (hook for constraints)
};
inline constexpr int kMaxTopLogprobs = 20;

struct SampleResult {
  int32_t token = -1;  // -1: a logit was NaN or +infinity, or every token is banned
  float logprob = 0;   // of the token: log-softmax of the raw logits, before bias and penalties
  int32_t num_top = 0;
  TokenValue top[kMaxTopLogprobs];  // most probable first, value = logprob as above
};

struct SampleParams {
  const float* logits = nullptr;  // [n, V]; not changed
  int32_t n = 0;
  int32_t V = 0;                    // rows of the head
  int32_t vocab = 0;                // ids >= vocab are never sampled (unused rows of the head)
  const SampleRow* rows = nullptr;  // [n] host memory
  SampleResult* results = nullptr;  // [n] host memory
  float* scratch = nullptr;         // [num_threads of the stream, 2 * V]
};

// logprob[i] = log-softmax(logits[i])[target[i]]; greedy[i] says whether the target is the arg max.
// NaN when a logit is NaN.
struct ScoreParams {
  const float* logits = nullptr;  // [n, V]
  int32_t n = 0;
  int32_t V = 0;
  const int32_t* target = nullptr;  // [n]
  float* logprob = nullptr;         // [n]
  uint8_t* greedy = nullptr;        // [n]
};

// The operators of one device and tier.
struct OpTable {
  const char* tier;
  int64_t (*packed_bytes)(int32_t O, int32_t K, DType dtype);
  void (*pack)(const PackParams&, Stream&);
  void (*embed)(const EmbedParams&, Stream&);
  void (*add_norm_mix)(const AddNormMixParams&, Stream&);
  void (*final_norm)(const FinalNormParams&, Stream&);
  // All n products in one parallel region; they do not read one another's outputs.
  void (*matmul)(const MatmulParams* params, int n, Stream&);
  void (*prepare)(const PrepareParams&, Stream&);
  void (*wkv7)(const Wkv7Params&, Stream&);
  void (*norm_bonus_gate)(const NormBonusGateParams&, Stream&);
  void (*sample)(const SampleParams&, Stream&);
  void (*score)(const ScoreParams&, Stream&);
  // wkv7 by products of matrices over 16 tokens at a time, for rows of so many: its last bits
  // depend on how a prompt is cut (1e-5 of the largest output). Null where the tier has none that
  // is faster.
  void (*wkv7_chunked)(const Wkv7Params&, Stream&) = nullptr;
};

}  // namespace skein::kernels
