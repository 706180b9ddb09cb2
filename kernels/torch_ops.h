#pragma once
// The differentiable operators on at::Tensor, for the trainer and, through torch.ops.skein.*, for
// any Python user (torch.ops.load_library("libskein_torch_ops.so")). Registered with
// TORCH_LIBRARY(skein, m) for CPU and Autograd; these functions call through the dispatcher. fp32
// and, for gradcheck, fp64; contiguous inputs (others are made so). Each has a hand-written
// backward. Letters as in kernels/ops.h; here batches are [B, T, ...].

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace skein::kernels {

// x' = x + delta; n = LN(x'); prev = n one token earlier (zero at t = 0 and where reset[b, t]);
// mixed[m] = n + (prev - n) * mix[m].
// x, delta [B, T, C] (delta optional), ln_weight, ln_bias [C], mix [M, C], reset bool [B, T]
// optional
// -> (x' [B, T, C], M times mixed [B, T, C])
std::tuple<at::Tensor, std::vector<at::Tensor>> AddNormMix(
    const at::Tensor& x, const std::optional<at::Tensor>& delta, const at::Tensor& ln_weight,
    const at::Tensor& ln_bias, const at::Tensor& mix, const std::optional<at::Tensor>& reset,
    double eps);

// k, a_raw, v [B, T, C]; v_raw, v_first [B, T, C] absent in layer 0; k_k, k_a [C]; H heads.
// -> (k', v', a = -kk, b = kk * sigmoid(a_raw)), all [B, T, C]
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> Prepare(
    const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
    const std::optional<at::Tensor>& v_raw, const std::optional<at::Tensor>& v_first,
    const at::Tensor& k_k, const at::Tensor& k_a, int64_t H);

// Chunked WKV-7. r, w_raw, k, v, a, b [B, T, C]; the decay w = exp(-e^{-1/2} sigmoid(w_raw)) is
// taken inside. state [B, H, N, N] ([value, key]) optional, zero without; reset bool [B, T]
// optional: the state is zeroed before token t. Any T >= 1, N a multiple of 16. -> (y [B, T, C],
// final state [B, H, N, N]); gradients of all inputs.
std::tuple<at::Tensor, at::Tensor> Wkv7(const at::Tensor& r, const at::Tensor& w_raw,
                                        const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& a, const at::Tensor& b,
                                        const std::optional<at::Tensor>& state,
                                        const std::optional<at::Tensor>& reset, int64_t H);

// (GroupNorm_H(y; eps) * ln_weight + ln_bias + (sum r k r_k per head) v) * g -> [B, T, C]; r_k [H,
// N].
at::Tensor NormBonusGate(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k,
                         const at::Tensor& v, const at::Tensor& g, const at::Tensor& r_k,
                         const at::Tensor& ln_weight, const at::Tensor& ln_bias, double eps);

// max(x, 0)^2
at::Tensor ReluSquared(const at::Tensor& x);

// x W^T. x [..., in], weight [out, in] -> [..., out]. With compute_bf16, here and below, both
// factors of a product are rounded to bf16, forward and backward.
at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16);

// act(x W1) W2 + bias; activation "none", "tanh" or "sigmoid". x [..., in], w1 [in, D], w2 [D,
// out], bias [out] optional -> [..., out]
at::Tensor LowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                   const std::optional<at::Tensor>& bias, std::string_view activation,
                   bool compute_bf16);

// Cross-entropy of head(x) plus L2Wrap, in chunks of rows: no [rows, V] tensor ever exists.
//   loss = sum_i weight_i * (-log softmax(head x_i)[label_i]) / W  +  1/2 l2wrap sum_i [used_i]
//   max_v(logit)^2 / n
// label -100 ignores a row (used_i = 0). W = sum of weights of used rows, n = number of used rows,
// unless `norm` and `norm_rows` name other denominators (accumulation over micro-batches).
// compute_bf16 rounds x and head to bf16 for the products. Gradients of x and head are computed in
// the forward pass and scaled in backward. x [rows, C], head [V, C], labels int64 [rows], weights
// [rows] optional -> loss [] and sum_i weight_i * cross-entropy_i (not divided by W, without
// L2Wrap, not differentiable) []
std::tuple<at::Tensor, at::Tensor> HeadCrossEntropy(const at::Tensor& x, const at::Tensor& head,
                                                    const at::Tensor& labels,
                                                    const std::optional<at::Tensor>& weights,
                                                    double l2wrap, double norm, double norm_rows,
                                                    bool compute_bf16);

// One pass of AdamW with decoupled weight decay over one flat tensor of fp32 master weights:
//   m = b1 m + (1-b1) g s;  v = b2 v + (1-b2) (g s)^2;  p -= lr * (m / (1-b1^step) / (sqrt(v /
//   (1-b2^step)) + eps) + wd p)
// s = grad_scale (clipping). In place. All [n] fp32 contiguous.
void AdamW(at::Tensor& param, const at::Tensor& grad, at::Tensor& m, at::Tensor& v, int64_t step,
           double lr, double beta1, double beta2, double eps, double weight_decay,
           double grad_scale);

// Sum of squares in double over a flat fp32 tensor, in an order that does not depend on the number
// of threads.
double SquaredNorm(const at::Tensor& grad);

}  // namespace skein::kernels
