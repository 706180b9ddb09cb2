#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class Real>
void Run(operators::AddNormMix* op) {
  train::AddNormMixForward<Real> p;
  p.B = op->x.size(0), p.T = op->x.size(1), p.C = op->x.size(2), p.M = op->mix.size(0);
  p.x = Data<Real>(op->x), p.delta = Data<Real>(op->delta);
  p.ln_weight = Data<Real>(op->ln_weight), p.ln_bias = Data<Real>(op->ln_bias);
  p.mix = Data<Real>(op->mix), p.reset = Data<bool>(op->reset), p.eps = op->eps;
  p.sum = Out<Real>(op->sum), p.mixed = Out<Real>(op->mixed);
  p.mean = Out<Real>(op->mean), p.rstd = Out<Real>(op->rstd);
  const auto& ops = train::ActiveTrainOps<Real>();
  ParallelRowBlocks(p.B * p.T,
                    [&](int64_t, int64_t begin, int64_t end) { ops.add_norm_mix(p, begin, end); });
}

template <class Real>
void RunGrad(const operators::AddNormMix& op, const at::Tensor& d_sum, at::TensorList d_mixes,
             operators::AddNormMixGrad* grad) {
  c10::SmallVector<const Real*, 8> mixes;
  for (const at::Tensor& d : d_mixes) mixes.push_back(Data<Real>(d));
  train::AddNormMixBackward<Real> p;
  p.B = op.sum.size(0), p.T = op.sum.size(1), p.C = op.sum.size(2), p.M = op.mix.size(0);
  p.sum = Data<Real>(op.sum), p.mean = Data<Real>(op.mean), p.rstd = Data<Real>(op.rstd);
  p.ln_weight = Data<Real>(op.ln_weight), p.ln_bias = Data<Real>(op.ln_bias);
  p.mix = Data<Real>(op.mix), p.reset = Data<bool>(op.reset);
  p.d_sum = Data<Real>(d_sum), p.d_mixed = mixes.data(), p.d_x = Out<Real>(grad->d_x);
  const auto& ops = train::ActiveTrainOps<Real>();
  SumOverRowBlocks<Real>(
      p.B * p.T, {p.M + 2, p.C}, op.sum.options(),
      [&](int64_t begin, int64_t end, Real* partial) {
        ops.add_norm_mix_grad(p, begin, end, partial);
      },
      &grad->partial, &grad->weights);
}

operators::AddNormMix Check(const at::Tensor& x, const OptionalTensor& delta,
                            const at::Tensor& ln_weight, const at::Tensor& ln_bias,
                            const at::Tensor& mix, const OptionalTensor& reset, double eps) {
  TORCH_CHECK(x.dim() == 3, "skein::add_norm_mix: x must be [B, T, C], got ", x.sizes());
  TORCH_CHECK(mix.dim() == 2, "skein::add_norm_mix: mix must be [M, C], got ", mix.sizes());
  const int64_t C = x.size(2);
  const auto type = x.scalar_type();
  operators::AddNormMix op;
  op.x = Checked(x, "x", type, x.sizes()), op.delta = Checked(delta, "delta", type, x.sizes());
  op.ln_weight = Checked(ln_weight, "ln_weight", type, {C});
  op.ln_bias = Checked(ln_bias, "ln_bias", type, {C});
  op.mix = Checked(mix, "mix", type, {mix.size(0), C});
  op.reset = Checked(reset, "reset", at::kBool, {x.size(0), x.size(1)}), op.eps = eps;
  return op;
}

using SumAndMixes = std::tuple<at::Tensor, variable_list>;

SumAndMixes Cpu(const at::Tensor& x, const OptionalTensor& delta, const at::Tensor& ln_weight,
                const at::Tensor& ln_bias, const at::Tensor& mix, const OptionalTensor& reset,
                double eps) {
  operators::AddNormMix op = Check(x, delta, ln_weight, ln_bias, mix, reset, eps);
  op.Forward();
  return {op.sum, op.mixes};
}

class AddNormMixFunction : public torch::autograd::Function<AddNormMixFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x,
                               const OptionalTensor& delta, const at::Tensor& ln_weight,
                               const at::Tensor& ln_bias, const at::Tensor& mix,
                               const OptionalTensor& reset, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::AddNormMix op = Check(x, delta, ln_weight, ln_bias, mix, reset, eps);
    op.Forward();
    ctx->set_materialize_grads(false);
    ctx->saved_data["has_delta"] = op.delta.defined();
    ctx->save_for_backward({op.sum, op.mean, op.rstd, op.ln_weight, op.ln_bias, op.mix, op.reset});
    variable_list outputs = std::move(op.mixes);
    outputs.insert(outputs.begin(), op.sum);
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("add_norm_mix");
    const at::Tensor none;
    const bool has_delta = ctx->saved_data["has_delta"].toBool();
    variable_list d_mixes(grads.begin() + 1, grads.end());
    const auto used = [](const at::Tensor& d) { return d.defined(); };
    if (std::none_of(d_mixes.begin(), d_mixes.end(), used)) {  // x' = x + delta is all there is
      return {grads[0], has_delta ? grads[0] : none, none, none, none, none, none};
    }
    const variable_list s = ctx->get_saved_variables();
    operators::AddNormMix op;
    op.sum = s[0], op.mean = s[1], op.rstd = s[2], op.ln_weight = s[3], op.ln_bias = s[4];
    op.mix = s[5], op.reset = s[6];
    for (at::Tensor& d : d_mixes) d = d.defined() ? d.contiguous() : at::zeros_like(op.sum);
    operators::AddNormMixGrad d;
    d.Backward(op, grads[0].defined() ? grads[0].contiguous() : none, d_mixes);
    const int64_t M = op.mix.size(0);
    return {d.d_x,
            has_delta ? d.d_x : none,
            d.weights[M],
            d.weights[M + 1],
            d.weights.narrow(0, 0, M),
            none,
            none};
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

void operators::AddNormMix::Forward() {
  const int64_t B = x.size(0), T = x.size(1), C = x.size(2), M = mix.size(0);
  const at::Tensor before = mixed;
  Size(&sum, {B, T, C}, x.options());
  Size(&mixed, {M, B, T, C}, x.options());
  Size(&mean, {B, T}, x.options());
  Size(&rstd, {B, T}, x.options());
  if (!mixed.is_same(before)) mixes = mixed.unbind(0);
  DispatchReal(x, "add_norm_mix", [&]<class Real>() { Run<Real>(this); });
}

void operators::AddNormMixGrad::Backward(const AddNormMix& op, const at::Tensor& d_sum,
                                         at::TensorList d_mixes) {
  Size(&d_x, op.sum.sizes(), op.sum.options());
  DispatchReal(op.sum, "add_norm_mix",
               [&]<class Real>() { RunGrad<Real>(op, d_sum, d_mixes, this); });
}

std::tuple<at::Tensor, std::vector<at::Tensor>> AddNormMix(
    const at::Tensor& x, const std::optional<at::Tensor>& delta, const at::Tensor& ln_weight,
    const at::Tensor& ln_bias, const at::Tensor& mix, const std::optional<at::Tensor>& reset,
    double eps) {
  static const auto op = FindOperator<decltype(AddNormMix)>("skein::add_norm_mix");
  return op.call(x, delta, ln_weight, ln_bias, mix, reset, eps);
}

}  // namespace skein::kernels
