// Products with weights: x W^T, and the low-rank act(x W1) W2 + bias. In fp32 they are LibTorch's;
// of factors rounded to bf16 the tier's own where it has one, which reads fp32 and keeps fp32 sums
// (LibTorch's needs a copy of each factor in bf16, and rounds its result).

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_backward.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tanh_backward.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch/product.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// a b + bias (which may be undefined).
at::Tensor Multiply(const at::Tensor& a, const at::Tensor& b, bool bf16,
                    const at::Tensor& bias = {}) {
  if (!bf16) return bias.defined() ? at::addmm(bias, a, b) : at::mm(a, b);
  if (HasTierProduct(a.scalar_type())) {
    const at::Tensor c = at::empty({a.size(0), b.size(1)}, a.options());
    TierProduct(a, b, bias, c);
    return c;
  }
  at::Tensor c = at::mm(a.to(at::kBFloat16), b.to(at::kBFloat16)).to(a.scalar_type());
  return bias.defined() ? c.add_(bias) : c;
}

// x [..., in] as rows; and rows [R, out] in the shape of x.
at::Tensor Rows(const at::Tensor& x) { return x.contiguous().view({-1, x.size(-1)}); }
at::Tensor InShapeOf(const at::Tensor& x, const at::Tensor& rows) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = rows.size(1);
  return rows.view(shape);
}

at::Tensor CpuLinear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2,
              "skein::linear: x must be [..., in] and weight [out, in], got ", x.sizes(), " and ",
              weight.sizes());
  const at::Tensor w = Checked(weight, "weight", x.scalar_type(), {weight.size(0), x.size(-1)});
  return InShapeOf(x, Multiply(Rows(x), w.t(), compute_bf16));
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
    const at::Tensor d_y = Rows(grads[0]), x = Rows(saved[0]), w = saved[1].contiguous();
    return {InShapeOf(saved[0], Multiply(d_y, w, bf16)), Multiply(d_y.t(), x, bf16), at::Tensor()};
  }
};

at::Tensor DifferentiableLinear(const at::Tensor& x, const at::Tensor& weight, bool compute_bf16) {
  return LinearFunction::apply(x, weight, compute_bf16);
}

// The activation, and the gradient through it by its result.
at::Tensor Activate(at::Tensor h, std::string_view activation) {
  if (activation == "tanh") return h.tanh_();
  if (activation == "sigmoid") return h.sigmoid_();
  TORCH_CHECK(activation == "none", "skein::low_rank: activation is ", activation,
              ", expected none, tanh or sigmoid");
  return h;
}
at::Tensor ActivateGrad(at::Tensor d_h, const at::Tensor& h, std::string_view activation) {
  if (activation == "tanh") return at::tanh_backward_out(d_h, d_h, h);
  if (activation == "sigmoid") return at::sigmoid_backward_out(d_h, d_h, h);
  return d_h;
}

struct LowRankResult {
  at::Tensor y, hidden;  // act(x W1), which the backward pass reads
};

LowRankResult RunLowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                         const OptionalTensor& bias, std::string_view activation, bool bf16) {
  TORCH_CHECK(x.dim() >= 1 && w1.dim() == 2 && w2.dim() == 2,
              "skein::low_rank: x must be [..., in], w1 [in, D] and w2 [D, out], got ", x.sizes(),
              ", ", w1.sizes(), " and ", w2.sizes());
  const auto type = x.scalar_type();
  const int64_t D = w1.size(1), N = w2.size(1);
  const OptionalTensor b = Checked(bias, "bias", type, {N});
  LowRankResult out;
  out.hidden =
      Activate(Multiply(Rows(x), Checked(w1, "w1", type, {x.size(-1), D}), bf16), activation);
  out.y = InShapeOf(x, Multiply(out.hidden, Checked(w2, "w2", type, {D, N}), bf16, OrUndefined(b)));
  return out;
}

at::Tensor CpuLowRank(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& w2,
                      const OptionalTensor& bias, std::string_view activation, bool compute_bf16) {
  return RunLowRank(x, w1, w2, bias, activation, compute_bf16).y;
}

class LowRankFunction : public torch::autograd::Function<LowRankFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& w1,
                            const at::Tensor& w2, const OptionalTensor& bias,
                            const std::string& activation, bool compute_bf16) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const LowRankResult out = RunLowRank(x, w1, w2, bias, activation, compute_bf16);
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["bf16"] = compute_bf16;
    ctx->saved_data["biased"] = bias.has_value() && bias->defined();
    ctx->save_for_backward({x, w1, w2, out.hidden});
    return out.y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("low_rank");
    const variable_list saved = ctx->get_saved_variables();
    const bool bf16 = ctx->saved_data["bf16"].toBool();
    const at::Tensor d_y = Rows(grads[0]), x = Rows(saved[0]), w1 = saved[1].contiguous(),
                     w2 = saved[2].contiguous(), &h = saved[3];
    const at::Tensor d_w2 = Multiply(h.t(), d_y, bf16);
    const at::Tensor d_h =
        ActivateGrad(Multiply(d_y, w2.t(), bf16), h, ctx->saved_data["activation"].toStringView());
    const at::Tensor d_bias = ctx->saved_data["biased"].toBool() ? at::sum(d_y, 0) : at::Tensor();
    return {InShapeOf(saved[0], Multiply(d_h, w1.t(), bf16)),
            Multiply(x.t(), d_h, bf16),
            d_w2,
            d_bias,
            at::Tensor(),
            at::Tensor()};
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
