#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The mixes are one tensor here, and as many as there are outside: so their gradients need not be
// put together. The rest is what the backward pass reads beside the inputs.
struct AddNormMixResult {
  at::Tensor sum, mixed, mean, rstd;
};

template <class Real>
AddNormMixResult Run(const at::Tensor& x, const OptionalTensor& delta, const at::Tensor& ln_weight,
                     const at::Tensor& ln_bias, const at::Tensor& mix, const OptionalTensor& reset,
                     double eps) {
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), M = mix.size(0);
  AddNormMixResult out{at::empty({B, T, C}, x.options()), at::empty({M, B, T, C}, x.options()),
                       at::empty({B, T}, x.options()), at::empty({B, T}, x.options())};
  train::AddNormMixForward<Real> p;
  p.B = B, p.T = T, p.C = C, p.M = M;
  p.x = Data<Real>(x), p.delta = Data<Real>(delta);
  p.ln_weight = Data<Real>(ln_weight), p.ln_bias = Data<Real>(ln_bias), p.mix = Data<Real>(mix);
  p.reset = Data<bool>(reset), p.eps = eps;
  p.sum = Out<Real>(out.sum), p.mixed = Out<Real>(out.mixed);
  p.mean = Out<Real>(out.mean), p.rstd = Out<Real>(out.rstd);
  const auto& ops = train::ActiveTrainOps<Real>();
  ParallelRowBlocks(B * T,
                    [&](int64_t, int64_t begin, int64_t end) { ops.add_norm_mix(p, begin, end); });
  return out;
}

AddNormMixResult Forward(const at::Tensor& x, const OptionalTensor& delta,
                         const at::Tensor& ln_weight, const at::Tensor& ln_bias,
                         const at::Tensor& mix, const OptionalTensor& reset, double eps) {
  TORCH_CHECK(x.dim() == 3, "skein::add_norm_mix: x must be [B, T, C], got ", x.sizes());
  TORCH_CHECK(mix.dim() == 2, "skein::add_norm_mix: mix must be [M, C], got ", mix.sizes());
  const int64_t C = x.size(2);
  const auto type = x.scalar_type();
  return DispatchReal(x, "add_norm_mix", [&]<class Real>() {
    return Run<Real>(Checked(x, "x", type, x.sizes()), Checked(delta, "delta", type, x.sizes()),
                     Checked(ln_weight, "ln_weight", type, {C}),
                     Checked(ln_bias, "ln_bias", type, {C}),
                     Checked(mix, "mix", type, {mix.size(0), C}),
                     Checked(reset, "reset", at::kBool, {x.size(0), x.size(1)}), eps);
  });
}

using SumAndMixes = std::tuple<at::Tensor, variable_list>;

SumAndMixes Cpu(const at::Tensor& x, const OptionalTensor& delta, const at::Tensor& ln_weight,
                const at::Tensor& ln_bias, const at::Tensor& mix, const OptionalTensor& reset,
                double eps) {
  const AddNormMixResult out = Forward(x, delta, ln_weight, ln_bias, mix, reset, eps);
  return {out.sum, out.mixed.unbind(0)};
}

template <class Real>
variable_list Backward(const variable_list& saved, const at::Tensor& d_sum,
                       const variable_list& d_mixed) {
  const at::Tensor &sum = saved[0], &ln_weight = saved[3], &mix = saved[5];
  variable_list mixed_grads;
  std::vector<const Real*> mixed_data;
  for (const at::Tensor& d : d_mixed) {
    mixed_grads.push_back(d.defined() ? d.contiguous() : at::zeros_like(sum));
    mixed_data.push_back(Data<Real>(mixed_grads.back()));
  }
  const at::Tensor sum_grad = d_sum.defined() ? d_sum.contiguous() : at::Tensor();
  const at::Tensor d_x = at::empty_like(sum);
  train::AddNormMixBackward<Real> p;
  p.B = sum.size(0), p.T = sum.size(1), p.C = sum.size(2), p.M = mix.size(0);
  p.sum = Data<Real>(sum), p.mean = Data<Real>(saved[1]), p.rstd = Data<Real>(saved[2]);
  p.ln_weight = Data<Real>(ln_weight), p.ln_bias = Data<Real>(saved[4]), p.mix = Data<Real>(mix);
  p.reset = Data<bool>(MaybeTensor(saved[6]));
  p.d_sum = Data<Real>(MaybeTensor(sum_grad)), p.d_mixed = mixed_data.data(),
  p.d_x = Out<Real>(d_x);
  const auto& ops = train::ActiveTrainOps<Real>();
  const at::Tensor weights = SumOverRowBlocks<Real>(p.B * p.T, {p.M + 2, p.C}, sum.options(),
                                                    [&](int64_t begin, int64_t end, Real* partial) {
                                                      ops.add_norm_mix_grad(p, begin, end, partial);
                                                    });
  return {d_x, weights[p.M], weights[p.M + 1], weights.narrow(0, 0, p.M)};
}

class AddNormMixFunction : public torch::autograd::Function<AddNormMixFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const OptionalTensor& delta, const at::Tensor& ln_weight,
                               const at::Tensor& ln_bias, const at::Tensor& mix,
                               const OptionalTensor& reset, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    AddNormMixResult out = Forward(x, delta, ln_weight, ln_bias, mix, reset, eps);
    ctx->set_materialize_grads(false);
    ctx->saved_data["has_delta"] = delta.has_value() && delta->defined();
    ctx->save_for_backward({out.sum, out.mean, out.rstd, ln_weight.contiguous(),
                            ln_bias.contiguous(), mix.contiguous(),
                            reset.has_value() ? reset->contiguous() : at::Tensor()});
    variable_list outputs = out.mixed.unbind(0);
    outputs.insert(outputs.begin(), out.sum);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("add_norm_mix");
    const at::Tensor none;
    const bool has_delta = ctx->saved_data["has_delta"].toBool();
    const variable_list d_mixed(grads.begin() + 1, grads.end());
    const auto used = [](const at::Tensor& d) { return d.defined(); };
    if (std::none_of(d_mixed.begin(), d_mixed.end(), used)) {  // x' = x + delta is all there is
      return {grads[0], has_delta ? grads[0] : none, none, none, none, none, none};
    }
    const variable_list saved = ctx->get_saved_variables();
    variable_list d = DispatchReal(saved[0], "add_norm_mix", [&]<class Real>() {
      return Backward<Real>(saved, grads[0], d_mixed);
    });
    return {d[0], has_delta ? d[0] : none, d[1], d[2], d[3], none, none};
  }
};

SumAndMixes Differentiable(const at::Tensor& x, const OptionalTensor& delta,
                           const at::Tensor& ln_weight, const at::Tensor& ln_bias,
                           const at::Tensor& mix, const OptionalTensor& reset, double eps) {
  const variable_list out =
      AddNormMixFunction::apply(x, delta, ln_weight, ln_bias, mix, reset, eps);
  return {out[0], variable_list(out.begin() + 1, out.end())};
}

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("add_norm_mix", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("add_norm_mix", Differentiable); }

}  // namespace

std::tuple<at::Tensor, std::vector<at::Tensor>> AddNormMix(
    const at::Tensor& x, const std::optional<at::Tensor>& delta, const at::Tensor& ln_weight,
    const at::Tensor& ln_bias, const at::Tensor& mix, const std::optional<at::Tensor>& reset,
    double eps) {
  static const auto op = FindOperator<decltype(AddNormMix)>("skein::add_norm_mix");
  return op.call(x, delta, ln_weight, ln_bias, mix, reset, eps);
}

}  // namespace skein::kernels
