#pragma once
// The training operators on raw pointers: forward and backward of each, for ranges of independent
// tasks, so that the caller (kernels/torch) spreads them over threads. plain_*.cc are the
// specification, templated to float and double; a tier fills the same table with faster float
// functions. No tensor, no thread and no hidden state in here.
//
// Results do not depend on the number of threads: tasks write disjoint outputs, and sums over rows
// (gradients of weights) go to one partial buffer per block of kRowsPerBlock rows, which SumBlocks
// adds in order.
//
// Letters: B sequences of T tokens, C = H * N channels, M mixes, R = B * T rows, V vocabulary rows.
// All arrays are contiguous; "null" marks pointers that may be absent. Every output is overwritten.

#include <cstdint>

namespace skein::kernels::train {

inline constexpr int64_t kRowsPerBlock = 64;
inline constexpr int64_t kChunk = 16;  // tokens per chunk of WKV-7

// x' = x + delta; n = LN(x'); mixed[m] = n + (prev - n) * mix[m]; prev = n one token earlier, zero
// at t = 0 and where reset. Tasks are rows.
template <class Real>
struct AddNormMixForward {
  int64_t B = 0, T = 0, C = 0, M = 0;
  const Real* x = nullptr;          // [R, C]
  const Real* delta = nullptr;      // [R, C] null
  const Real* ln_weight = nullptr;  // [C]
  const Real* ln_bias = nullptr;    // [C]
  const Real* mix = nullptr;        // [M, C]
  const bool* reset = nullptr;      // [R] null
  Real eps = 0;
  Real* sum = nullptr;    // [R, C] x'
  Real* mixed = nullptr;  // [M, R, C]
  Real* mean = nullptr;   // [R]
  Real* rstd = nullptr;   // [R]
};

// partial [M + 2, C] of one block: gradients of mix, ln_weight, ln_bias.
template <class Real>
struct AddNormMixBackward {
  int64_t B = 0, T = 0, C = 0, M = 0;
  const Real* sum = nullptr;             // [R, C]
  const Real* mean = nullptr;            // [R]
  const Real* rstd = nullptr;            // [R]
  const Real* ln_weight = nullptr;       // [C]
  const Real* ln_bias = nullptr;         // [C]
  const Real* mix = nullptr;             // [M, C]
  const bool* reset = nullptr;           // [R] null
  const Real* d_sum = nullptr;           // [R, C] null
  const Real* const* d_mixed = nullptr;  // [M] of [R, C]
  Real* d_x = nullptr;                   // [R, C]; also the gradient of delta
};

// alpha = sigmoid(a_raw); kk = normalize_head(k * k_k); k' = k (1 + (alpha - 1) k_a); a = -kk; b =
// kk alpha; v' = v + (v_first - v) sigmoid(v_raw), or v without v_raw. Tasks are rows.
template <class Real>
struct PrepareForward {
  int64_t R = 0, H = 0, N = 0;
  const Real* k = nullptr;        // [R, C]
  const Real* v = nullptr;        // [R, C]
  const Real* a_raw = nullptr;    // [R, C]
  const Real* v_raw = nullptr;    // [R, C] null
  const Real* v_first = nullptr;  // [R, C] null with v_raw
  const Real* k_k = nullptr;      // [C]
  const Real* k_a = nullptr;      // [C]
  Real* k_out = nullptr;          // [R, C] each
  Real* v_out = nullptr;
  Real* a_out = nullptr;
  Real* b_out = nullptr;
};

// partial [2, C] of one block: gradients of k_k, k_a.
template <class Real>
struct PrepareBackward {
  int64_t R = 0, H = 0, N = 0;
  const Real* k = nullptr;  // the inputs of the forward pass
  const Real* v = nullptr;
  const Real* a_raw = nullptr;
  const Real* v_raw = nullptr;
  const Real* v_first = nullptr;
  const Real* k_k = nullptr;
  const Real* k_a = nullptr;
  const Real* d_k_out = nullptr;  // [R, C] each
  const Real* d_v_out = nullptr;  // null without v_raw
  const Real* d_a_out = nullptr;
  const Real* d_b_out = nullptr;
  Real* d_k = nullptr;  // [R, C] each
  Real* d_v = nullptr;  // these three null without v_raw
  Real* d_v_raw = nullptr;
  Real* d_v_first = nullptr;
  Real* d_a_raw = nullptr;
};

// WKV-7 with the decay w = exp(-e^{-1/2} sigmoid(w_raw)). Per head, S[value, key]:
//   S <- 0 where reset;  S <- S diag(w) + (S a) b^T + v k^T;  y = S r
// Tasks are b * H + h.
template <class Real>
struct Wkv7Forward {
  int64_t B = 0, T = 0, H = 0, N = 0;
  const Real* r = nullptr;  // [R, C] each
  const Real* w_raw = nullptr;
  const Real* k = nullptr;
  const Real* v = nullptr;
  const Real* a = nullptr;
  const Real* b = nullptr;
  const Real* state = nullptr;  // [B, H, N, N] null
  const bool* reset = nullptr;  // [R] null
  Real* y = nullptr;            // [R, C]
  Real* final_state = nullptr;  // [B, H, N, N]
  Real* chunk_states =
      nullptr;         // [B, H, ceil(T / kChunk), N key, N value] null: the state before each chunk
  Real* sa = nullptr;  // [R, C] null: S a of each token
};

template <class Real>
struct Wkv7Backward {
  Wkv7Forward<Real> forward;  // as it was filled for the forward pass; nothing in it is written
  const Real* d_y = nullptr;  // [R, C]
  const Real* d_final_state = nullptr;  // [B, H, N, N] null
  Real* d_r = nullptr;                  // [R, C] each
  Real* d_w_raw = nullptr;
  Real* d_k = nullptr;
  Real* d_v = nullptr;
  Real* d_a = nullptr;
  Real* d_b = nullptr;
  Real* d_state = nullptr;  // [B, H, N, N]
};

// out = (GroupNorm_H(y; eps) * ln_weight + ln_bias + (sum_n r k r_k) v) * g. Tasks are rows.
template <class Real>
struct NormBonusGateForward {
  int64_t R = 0, H = 0, N = 0;
  const Real* y = nullptr;  // [R, C] each
  const Real* r = nullptr;
  const Real* k = nullptr;
  const Real* v = nullptr;
  const Real* g = nullptr;
  const Real* r_k = nullptr;        // [C]
  const Real* ln_weight = nullptr;  // [C]
  const Real* ln_bias = nullptr;    // [C]
  Real eps = 0;
  Real* out = nullptr;  // [R, C]
};

// partial [3, C] of one block: gradients of r_k, ln_weight, ln_bias.
template <class Real>
struct NormBonusGateBackward {
  NormBonusGateForward<Real> forward;  // as in the forward pass; out is not read
  const Real* d_out = nullptr;         // [R, C]
  Real* d_y = nullptr;                 // [R, C] each
  Real* d_r = nullptr;
  Real* d_k = nullptr;
  Real* d_v = nullptr;
  Real* d_g = nullptr;
};

// One chunk of rows of logits, turned in place into gradients of the loss. Tasks are rows.
//   ce = -log softmax(logits)[label];  d_logits = scale (softmax - onehot(label)) + l2 max
//   onehot(arg max)
// with scale = weight * inv_norm and l2 = l2wrap * inv_rows. Label -100: gradients 0 and nothing
// counted.
template <class Real>
struct CrossEntropyArgs {
  int64_t V = 0;
  const int64_t* labels = nullptr;  // [rows]
  const Real* weights = nullptr;    // [rows] null: 1
  Real inv_norm = 0;
  Real l2 = 0;
  bool gradient = true;           // false: logits are left alone
  Real* logits = nullptr;         // [rows, V]
  double* ce = nullptr;           // [rows] 0 where ignored
  double* max_squared = nullptr;  // [rows] 0 where ignored
};

// c = bias + a b, or c += a b, in fp32, of factors rounded to bf16. One stride of each factor is 1.
// Tasks are blocks of kProductLines lines of c: of rows, or of columns where there are more of
// them, so that what every task needs whole is the smaller factor.
inline constexpr int64_t kProductLines = 32;
struct ProductArgs {
  int64_t M = 0, N = 0, K = 0;
  const float* a = nullptr;  // [M, K]
  int64_t a_row = 0, a_column = 0;
  const float* b = nullptr;  // [K, N]
  int64_t b_row = 0, b_column = 0;
  const float* bias = nullptr;  // [N] null
  bool add = false;             // to c, without bias
  float* c = nullptr;           // [M, N]

  bool by_columns() const { return N > M; }
  int64_t tasks() const { return ((by_columns() ? N : M) + kProductLines - 1) / kProductLines; }
};

struct AdamWArgs {
  float* param = nullptr;
  const float* grad = nullptr;
  float* m = nullptr;
  float* v = nullptr;
  float beta1 = 0, beta2 = 0, eps = 0;
  float step_size = 0;       // lr / (1 - beta1^step)
  float inv_sqrt_bias2 = 0;  // 1 / sqrt(1 - beta2^step)
  float decay = 0;           // lr * weight decay
  float grad_scale = 1;
};

// The functions of one tier. Ranges [begin, end) are tasks as said above each struct (elements for
// relu_squared and adamw).
template <class Real>
struct TrainOps {
  const char* tier;
  void (*add_norm_mix)(const AddNormMixForward<Real>&, int64_t begin, int64_t end);
  void (*add_norm_mix_grad)(const AddNormMixBackward<Real>&, int64_t begin, int64_t end,
                            Real* partial);
  void (*prepare)(const PrepareForward<Real>&, int64_t begin, int64_t end);
  void (*prepare_grad)(const PrepareBackward<Real>&, int64_t begin, int64_t end, Real* partial);
  void (*wkv7)(const Wkv7Forward<Real>&, int64_t begin, int64_t end);
  void (*wkv7_grad)(const Wkv7Backward<Real>&, int64_t begin, int64_t end);
  // The same with 16 bits of each factor of a product, for training in bf16. Null where the tier
  // has none that is faster.
  void (*wkv7_bf16)(const Wkv7Forward<Real>&, int64_t begin, int64_t end) = nullptr;
  void (*wkv7_bf16_grad)(const Wkv7Backward<Real>&, int64_t begin, int64_t end) = nullptr;
  void (*norm_bonus_gate)(const NormBonusGateForward<Real>&, int64_t begin, int64_t end);
  void (*norm_bonus_gate_grad)(const NormBonusGateBackward<Real>&, int64_t begin, int64_t end,
                               Real* partial);
  void (*cross_entropy)(const CrossEntropyArgs<Real>&, int64_t begin, int64_t end);
  void (*relu_squared)(const Real* x, Real* out, int64_t begin, int64_t end);
  void (*relu_squared_grad)(const Real* x, const Real* d_out, Real* d_x, int64_t begin,
                            int64_t end);
  void (*adamw)(const AdamWArgs&, int64_t begin, int64_t end);  // null for double
  // Null where LibTorch's product is as fast.
  void (*product)(const ProductArgs&, int64_t begin, int64_t end);
};

template <class Real>
const TrainOps<Real>& PlainTrainOps();

// The table of a tier by name, or null when it is unknown or this machine does not have it.
const TrainOps<float>* FindTrainOps(const char* tier);

// What the operators on tensors use: for float $SKEIN_CPU if set (throws std::runtime_error when
// this machine does not have it), else the best tier here; for double the plain loops. Decided
// once.
template <class Real>
const TrainOps<Real>& ActiveTrainOps();

// out[i] = sum over blocks, in order, of partial[block * n + i].
template <class Real>
void SumBlocks(const Real* partial, int64_t blocks, int64_t n, Real* out);

// Sum of squares in double of up to kSquaredNormBlock elements; the caller adds blocks in order.
inline constexpr int64_t kSquaredNormBlock = 1 << 14;
double SquaredNormBlock(const float* x, int64_t n);

}  // namespace skein::kernels::train
