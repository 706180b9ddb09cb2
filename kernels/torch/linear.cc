// Products with weights: x W^T, and the low-rank act(x W1) W2 + bias.

#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch/product.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// [..., columns] for x [..., in]
at::Tensor EmptyFor(const at::Tensor& x, int64_t columns) {
  c10::SmallVector<int64_t, 4> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = columns;
  return at::empty(shape, x.options());
}

at::Tensor CpuLinear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2,
              "skein::linear: x must be [..., in] and weight [out, in], got ", x.sizes(), " and ",
              weight.sizes());
  const at::Tensor w = Checked(weight, "weight", x.scalar_type(), {weight.size(0), x.size(-1)});
  at::Tensor y = EmptyFor(x, w.size(0));
  Multiply({x.contiguous()}, Transposed(w), {}, compute_bf16, y);
  return y;
}

class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            bool compute_bf16) {
    at::AutoDispatchBelowADInplaceOrView guard;
    ctx->saved_data["bf16"] = compute_bf16;
    ctx->save_for_backward({x, weight});
    return CpuLinear(x, weight, compute_bf16);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("linear");
    const variable_list saved = ctx->get_saved_variables();
    const bool bf16 = ctx->saved_data["bf16"].toBool();
    const at::Tensor d_y = grads[0].contiguous(), x = saved[0].contiguous(),
                     w = saved[1].contiguous();
    const at::Tensor d_x = at::empty_like(x), d_w = at::empty_like(w);
    Multiply({d_y}, {w}, {}, bf16, d_x);
    Multiply(Transposed(d_y), {x}, {}, bf16, d_w);
    return {d_x, d_w, at::Tensor()};
  }
};

at::Tensor DifferentiableLinear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16) {
  return LinearFunction::apply(x, weight, compute_bf16);
}

// The activation, and the gradient through it by its result; in place.
void Activate(at::Tensor& h, std::string_view activation) {
  if (activation == "tanh") {
    at::tanh_(h);
  } else if (activation == "sigmoid") {
    at::sigmoid_(h);
  } else {
    TORCH_CHECK(activation == "none", "skein::low_rank: activation is ", activation,
                ", expected none, tanh or sigmoid");
  }
}
void ActivateGrad(at::Tensor& d_h, const at::Tensor& h, std::string_view activation) {
  if (activation == "tanh") at::tanh_backward_out(d_h, d_h, h);
  if (activation == "sigmoid") at::sigmoid_backward_out(d_h, d_h, h);
}

// sums [columns] += the rows of x, in order.
template <class Real>
void AddRows(const at::Tensor& x, const at::Tensor& sums) {
  constexpr int64_t kColumns = 64;  // of a thread, at least
  const int64_t columns = x.size(-1), rows = x.numel() / columns;
  const Real* from = Data<Real>(x);
  Real* to = Out<Real>(sums);
  ParallelRange(columns, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[row * columns + i];
    }
  });
}

operators::LowRank CheckLowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                                const OptionalTensor& bias, std::string_view activation,
                                bool bf16) {
  TORCH_CHECK(x.dim() >= 1 && w1.dim() == 2 && w2.dim() == 2,
              "skein::low_rank: x must be [..., in], w1 [in, D] and w2 [D, out], got ", x.sizes(),
              ", ", w1.sizes(), " and ", w2.sizes());
  const auto type = x.scalar_type();
  const int64_t D = w1.size(1), N = w2.size(1);
  operators::LowRank op;
  op.x = x.contiguous(), op.w1 = Checked(w1, "w1", type, {x.size(-1), D});
  op.w2 = Checked(w2, "w2", type, {D, N}), op.bias = Checked(bias, "bias", type, {N});
  op.activation = activation, op.bf16 = bf16;
  return op;
}

at::Tensor CpuLowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                      const OptionalTensor& bias, std::string_view activation, bool compute_bf16) {
  operators::LowRank op = CheckLowRank(x, w1, w2, bias, activation, compute_bf16);
  op.Forward();
  return op.y;
}

class LowRankFunction : public torch::autograd::Function<LowRankFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w1,
                            const at::Tensor& w2, const OptionalTensor& bias,
                            const std::string& activation, bool compute_bf16) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::LowRank op = CheckLowRank(x, w1, w2, bias, activation, compute_bf16);
    op.Forward();
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["bf16"] = compute_bf16;
    ctx->save_for_backward({op.x, op.w1, op.w2, op.bias, op.hidden});
    return op.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("low_rank");
    const variable_list s = ctx->get_saved_variables();
    operators::LowRank op;
    op.x = s[0], op.w1 = s[1], op.w2 = s[2], op.bias = s[3], op.hidden = s[4];
    op.activation = ctx->saved_data["activation"].toStringView();
    op.bf16 = ctx->saved_data["bf16"].toBool();
    const at::Tensor none, d_x = at::empty_like(op.x), d_w1 = at::zeros_like(op.w1),
                           d_w2 = at::zeros_like(op.w2),
                           d_bias = op.bias.defined() ? at::zeros_like(op.bias) : none;
    operators::LowRankGrad().Backward(op, grads[0].contiguous(), d_x, false, d_w1, d_w2, d_bias);
    return {d_x, d_w1, d_w2, d_bias, none, none};
  }
};

at::Tensor DifferentiableLowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                                 const OptionalTensor& bias, std::string_view activation,
                                 bool compute_bf16) {
  return LowRankFunction::apply(x, w1, w2, bias, std::string(activation), compute_bf16);
}

TORCH_LIBRARY_IMPL(skein, CPU, m) {
  m.impl("linear", CpuLinear);
  m.impl("low_rank", CpuLowRank);
}
TORCH_LIBRARY_IMPL(skein, Autograd, m) {
  m.impl("linear", DifferentiableLinear);
  m.impl("low_rank", DifferentiableLowRank);
}

}  // namespace

void operators::LowRank::Forward() {
  Size(&hidden, {x.numel() / x.size(-1), w1.size(1)}, x.options());
  c10::SmallVector<int64_t, 4> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = w2.size(1);
  Size(&y, shape, x.options());
  Multiply({x}, {w1}, {}, bf16, hidden);
  Activate(hidden, activation);
  Multiply({hidden}, {w2}, bias, bf16, y);
}

void operators::LowRankGrad::Backward(const LowRank& op, const at::Tensor& d_y,
                                      const at::Tensor& d_x, bool add_to_d_x,
                                      const at::Tensor& d_w1, const at::Tensor& d_w2,
                                      const at::Tensor& d_bias) {
  Size(&d_hidden, op.hidden.sizes(), op.hidden.options());
  AddProduct(Transposed(op.hidden), {d_y}, op.bf16, d_w2);
  Multiply({d_y}, Transposed(op.w2), {}, op.bf16, d_hidden);
  ActivateGrad(d_hidden, op.hidden, op.activation);
  AddProduct(Transposed(op.x), {d_hidden}, op.bf16, d_w1);
  if (add_to_d_x) {
    AddProduct({d_hidden}, Transposed(op.w1), op.bf16, d_x);
  } else {
    Multiply({d_hidden}, Transposed(op.w1), {}, op.bf16, d_x);
  }
  if (!d_bias.defined()) return;
  DispatchReal(d_y, "low_rank", [&]<class Real>() { AddRows<Real>(d_y, d_bias); });
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16) {
  static const auto op = FindOperator<decltype(Linear)>("skein::linear");
  return op.call(x, weight, compute_bf16);
}

at::Tensor LowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                   const std::optional<at::Tensor>& bias, std::string_view activation,
                   bool compute_bf16) {
  static const auto op = FindOperator<decltype(LowRank)>("skein::low_rank");
  return op.call(x, w1, w2, bias, activation, compute_bf16);
}

}  // namespace skein::kernels
