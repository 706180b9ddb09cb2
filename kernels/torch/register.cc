// The schemas of torch.ops.skein.*. Each operator's file registers its CPU and Autograd
// implementations. Those that end in _train return what their backward needs as well, and have no
// derivative of their own.

#include <torch/library.h>

TORCH_LIBRARY(skein, m) {
  m.def(
      "add_norm_mix(Tensor x, Tensor? delta, Tensor ln_weight, Tensor ln_bias, Tensor mix, Tensor? "
      "reset, float eps) -> "
      "(Tensor, Tensor[])");
  m.def(
      "prepare(Tensor k, Tensor v, Tensor a_raw, Tensor? v_raw, Tensor? v_first, Tensor k_k, "
      "Tensor k_a, int H) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "wkv7(Tensor r, Tensor w_raw, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state, Tensor? "
      "reset, int H) -> "
      "(Tensor, Tensor)");
  m.def(
      "norm_bonus_gate(Tensor y, Tensor r, Tensor k, Tensor v, Tensor g, Tensor r_k, Tensor "
      "ln_weight, Tensor ln_bias, "
      "float eps) -> Tensor");
  m.def("relu_squared(Tensor x) -> Tensor");
  m.def("linear(Tensor x, Tensor weight, bool compute_bf16) -> Tensor");
  m.def(
      "low_rank(Tensor x, Tensor w1, Tensor w2, Tensor? bias, str activation, bool compute_bf16) "
      "-> "
      "Tensor");
  m.def(
      "head_cross_entropy(Tensor x, Tensor head, Tensor labels, Tensor? weights, float l2wrap, "
      "float norm, "
      "float norm_rows, bool compute_bf16) -> (Tensor, Tensor)");
  m.def(
      "adamw_(Tensor(a!) param, Tensor grad, Tensor(b!) m, Tensor(c!) v, int step, float lr, float "
      "beta1, float beta2, "
      "float eps, float weight_decay, float grad_scale) -> ()");
  m.def("squared_norm(Tensor grad) -> float");
}
