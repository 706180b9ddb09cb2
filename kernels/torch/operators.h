#pragma once
// The operators without dispatcher and autograd, on contiguous CPU tensors of one type (float or
// double) that nobody checks again. torch.ops.skein makes these for one call; a trainer keeps them:
// results and gradients that have their shape already keep their memory, so a step that repeats the
// one before makes no tensor here. kernels/torch_ops.h says what each computes, and the shapes.
//
// Each operator has its inputs and results in one struct, and the gradients in a second one, which
// several of its kind can share. Backward overwrites the gradients of inputs; those of weights come
// as one tensor for the caller to add, or are added where that is said.

#include <ATen/core/Tensor.h>

#include <string_view>
#include <vector>

namespace skein::kernels::operators {

struct AddNormMix {
  at::Tensor x, delta, ln_weight, ln_bias, mix, reset;  // delta and reset may be undefined
  double eps = 0;
  at::Tensor sum, mixed, mean, rstd;  // mixed [M, B, T, C]
  std::vector<at::Tensor> mixes;      // M parts of mixed
  void Forward();
};
struct AddNormMixGrad {
  at::Tensor d_x, weights,
      partial;  // d_x also of delta; weights [M + 2, C]: mix, ln_weight, ln_bias
  // d_sum may be undefined. x and delta of `op` are not read.
  void Backward(const AddNormMix& op, const at::Tensor& d_sum, at::TensorList d_mixes);
};

struct Prepare {
  at::Tensor k, v, a_raw, v_raw, v_first, k_k, k_a;  // v_raw and v_first undefined in layer 0
  int64_t H = 0;
  at::Tensor k_out, v_out, a, b;
  void Forward();
};
struct PrepareGrad {
  // Those of v are left alone in layer 0, where the gradient of v is d_v_out.
  at::Tensor d_k, d_a_raw, d_v, d_v_raw, d_v_first;
  at::Tensor weights, partial;  // weights [2, C]: k_k, k_a
  void Backward(const Prepare& op, const at::Tensor& d_k_out, const at::Tensor& d_v_out,
                const at::Tensor& d_a, const at::Tensor& d_b);
};

struct Wkv7 {
  at::Tensor r, w_raw, k, v, a, b, state, reset;  // state and reset may be undefined
  int64_t H = 0;
  bool bf16 = false;  // its products in bf16, high and low halves, where that is faster
  at::Tensor y, final_state, chunk_states, sa;
  void Forward(bool keep);  // keep: chunk_states and sa, for the backward pass
};
struct Wkv7Grad {
  at::Tensor d_r, d_w_raw, d_k, d_v, d_a, d_b, d_state;
  // d_final_state may be undefined. y of `op` is not read.
  void Backward(const Wkv7& op, const at::Tensor& d_y, const at::Tensor& d_final_state);
};

struct NormBonusGate {
  at::Tensor y, r, k, v, g, r_k, ln_weight, ln_bias;
  double eps = 0;
  at::Tensor out;
  void Forward();
};
struct NormBonusGateGrad {
  at::Tensor d_y, d_r, d_k, d_v, d_g;
  at::Tensor weights, partial;  // weights [3, C]: r_k, ln_weight, ln_bias
  void Backward(const NormBonusGate& op, const at::Tensor& d_out);
};

void ReluSquared(const at::Tensor& x, at::Tensor* out);
void ReluSquaredGrad(const at::Tensor& x, const at::Tensor& d_out, at::Tensor* d_x);

struct LowRank {
  at::Tensor x, w1, w2, bias;  // x [..., in]; bias may be undefined
  std::string_view activation;
  bool bf16 = false;
  at::Tensor hidden, y;  // act(x W1) [rows, D]; y [..., out]
  void Forward();
};
struct LowRankGrad {
  at::Tensor d_hidden;
  // Overwrites d_x, or adds to it, and adds to the others. d_bias may be undefined.
  void Backward(const LowRank& op, const at::Tensor& d_y, const at::Tensor& d_x, bool add_to_d_x,
                const at::Tensor& d_w1, const at::Tensor& d_w2, const at::Tensor& d_bias);
};

struct HeadCrossEntropy {
  at::Tensor x, head, labels, weights;  // weights may be undefined
  double l2wrap = 0, norm = 0, norm_rows = 0;
  bool bf16 = false;
  double loss = 0, ce_sum = 0;
  at::Tensor d_x, logits;
  std::vector<double> ce, squares;  // of a chunk's rows
  // With d_head: d_x is filled, and d_head added to.
  void Run(const at::Tensor& d_head);
};

// Makes *t a tensor of this shape if it is not one.
void Size(at::Tensor* t, at::IntArrayRef sizes, const at::TensorOptions& options);

// to += from, elements.
void Add(const at::Tensor& from, const at::Tensor& to);

}  // namespace skein::kernels::operators
