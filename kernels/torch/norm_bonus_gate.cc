#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// y, r, k, v, g [B, T, C], r_k [H, N], ln_weight, ln_bias [C], checked and contiguous, in this
// order.
using Inputs = variable_list;

Inputs Check(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& g, const at::Tensor& r_k, const at::Tensor& ln_weight,
             const at::Tensor& ln_bias) {
  TORCH_CHECK(y.dim() == 3, "skein::norm_bonus_gate: y must be [B, T, C], got ", y.sizes());
  const int64_t C = y.size(2);
  TORCH_CHECK(r_k.dim() == 2 && r_k.numel() == C,
              "skein::norm_bonus_gate: r_k must be [H, N] with H N = ", C, ", got ", r_k.sizes());
  const auto type = y.scalar_type();
  return {Checked(y, "y", type, y.sizes()),           Checked(r, "r", type, y.sizes()),
          Checked(k, "k", type, y.sizes()),           Checked(v, "v", type, y.sizes()),
          Checked(g, "g", type, y.sizes()),           Checked(r_k, "r_k", type, r_k.sizes()),
          Checked(ln_weight, "ln_weight", type, {C}), Checked(ln_bias, "ln_bias", type, {C})};
}

template <class Real>
train::NormBonusGateForward<Real> Params(const Inputs& in, double eps) {
  train::NormBonusGateForward<Real> p;
  p.R = in[0].size(0) * in[0].size(1), p.H = in[5].size(0), p.N = in[5].size(1);
  p.y = Data<Real>(in[0]), p.r = Data<Real>(in[1]), p.k = Data<Real>(in[2]),
  p.v = Data<Real>(in[3]);
  p.g = Data<Real>(in[4]), p.r_k = Data<Real>(in[5]);
  p.ln_weight = Data<Real>(in[6]), p.ln_bias = Data<Real>(in[7]), p.eps = eps;
  return p;
}

at::Tensor Run(const Inputs& in, double eps) {
  const at::Tensor out = at::empty_like(in[0]);
  DispatchReal(in[0], "norm_bonus_gate", [&]<class Real>() {
    auto p = Params<Real>(in, eps);
    p.out = Out<Real>(out);
    const auto& ops = train::ActiveTrainOps<Real>();
    ParallelRowBlocks(
        p.R, [&](int64_t, int64_t begin, int64_t end) { ops.norm_bonus_gate(p, begin, end); });
  });
  return out;
}

at::Tensor Cpu(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
               const at::Tensor& g, const at::Tensor& r_k, const at::Tensor& ln_weight,
               const at::Tensor& ln_bias, double eps) {
  return Run(Check(y, r, k, v, g, r_k, ln_weight, ln_bias), eps);
}

// In the order of the inputs.
template <class Real>
variable_list Backward(const Inputs& in, double eps, const at::Tensor& d_out) {
  variable_list d(5);
  for (at::Tensor& t : d) t = at::empty_like(in[0]);
  train::NormBonusGateBackward<Real> q;
  q.forward = Params<Real>(in, eps);
  q.d_out = Data<Real>(d_out);
  q.d_y = Out<Real>(d[0]), q.d_r = Out<Real>(d[1]), q.d_k = Out<Real>(d[2]),
  q.d_v = Out<Real>(d[3]);
  q.d_g = Out<Real>(d[4]);
  const auto& ops = train::ActiveTrainOps<Real>();
  const at::Tensor weights =
      SumOverRowBlocks<Real>(q.forward.R, {3, in[0].size(2)}, in[0].options(),
                             [&](int64_t begin, int64_t end, Real* partial) {
                               ops.norm_bonus_gate_grad(q, begin, end, partial);
                             });
  d.push_back(weights[0].view(in[5].sizes()));
  d.push_back(weights[1]);
  d.push_back(weights[2]);
  return d;
}

class NormBonusGateFunction : public torch::autograd::Function<NormBonusGateFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& r,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                            const at::Tensor& r_k, const at::Tensor& ln_weight,
                            const at::Tensor& ln_bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Inputs in = Check(y, r, k, v, g, r_k, ln_weight, ln_bias);
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward(in);
    return Run(in, eps);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("norm_bonus_gate");
    const Inputs in = ctx->get_saved_variables();
    const double eps = ctx->saved_data["eps"].toDouble();
    const at::Tensor d_out = grads[0].contiguous();
    variable_list d = DispatchReal(in[0], "norm_bonus_gate",
                                   [&]<class Real>() { return Backward<Real>(in, eps, d_out); });
    d.emplace_back();  // eps
    return d;
  }
};

at::Tensor Differentiable(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& g, const at::Tensor& r_k,
                          const at::Tensor& ln_weight, const at::Tensor& ln_bias, double eps) {
  return NormBonusGateFunction::apply(y, r, k, v, g, r_k, ln_weight, ln_bias, eps);
}

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("norm_bonus_gate", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("norm_bonus_gate", Differentiable); }

}  // namespace

at::Tensor NormBonusGate(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k,
                         const at::Tensor& v, const at::Tensor& g, const at::Tensor& r_k,
                         const at::Tensor& ln_weight, const at::Tensor& ln_bias, double eps) {
  static const auto op = FindOperator<decltype(NormBonusGate)>("skein::norm_bonus_gate");
  return op.call(y, r, k, v, g, r_k, ln_weight, ln_bias, eps);
}

}  // namespace skein::kernels
