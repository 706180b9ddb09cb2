#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

operators::NormBonusGate Check(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& g, const at::Tensor& r_k,
                               const at::Tensor& ln_weight, const at::Tensor& ln_bias, double eps) {
  TORCH_CHECK(y.dim() == 3, "skein::norm_bonus_gate: y must be [B, T, C], got ", y.sizes());
  const int64_t C = y.size(2);
  TORCH_CHECK(r_k.dim() == 2 && r_k.numel() == C,
              "skein::norm_bonus_gate: r_k must be [H, N] with H N = ", C, ", got ", r_k.sizes());
  const auto type = y.scalar_type();
  operators::NormBonusGate op;
  op.y = Checked(y, "y", type, y.sizes()), op.r = Checked(r, "r", type, y.sizes());
  op.k = Checked(k, "k", type, y.sizes()), op.v = Checked(v, "v", type, y.sizes());
  op.g = Checked(g, "g", type, y.sizes()), op.r_k = Checked(r_k, "r_k", type, r_k.sizes());
  op.ln_weight = Checked(ln_weight, "ln_weight", type, {C});
  op.ln_bias = Checked(ln_bias, "ln_bias", type, {C}), op.eps = eps;
  return op;
}

template <class Real>
train::NormBonusGateForward<Real> Params(const operators::NormBonusGate& op) {
  train::NormBonusGateForward<Real> p;
  p.R = op.y.size(0) * op.y.size(1), p.H = op.r_k.size(0), p.N = op.r_k.size(1);
  p.y = Data<Real>(op.y), p.r = Data<Real>(op.r), p.k = Data<Real>(op.k), p.v = Data<Real>(op.v);
  p.g = Data<Real>(op.g), p.r_k = Data<Real>(op.r_k);
  p.ln_weight = Data<Real>(op.ln_weight), p.ln_bias = Data<Real>(op.ln_bias), p.eps = op.eps;
  return p;
}

at::Tensor Cpu(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k, const at::Tensor& v,
               const at::Tensor& g, const at::Tensor& r_k, const at::Tensor& ln_weight,
               const at::Tensor& ln_bias, double eps) {
  operators::NormBonusGate op = Check(y, r, k, v, g, r_k, ln_weight, ln_bias, eps);
  op.Forward();
  return op.out;
}

class NormBonusGateFunction : public torch::autograd::Function<NormBonusGateFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& y, const at::Tensor& r,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                            const at::Tensor& r_k, const at::Tensor& ln_weight,
                            const at::Tensor& ln_bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::NormBonusGate op = Check(y, r, k, v, g, r_k, ln_weight, ln_bias, eps);
    op.Forward();
    ctx->saved_data["eps"] = eps;
    ctx->save_for_backward({op.y, op.r, op.k, op.v, op.g, op.r_k, op.ln_weight, op.ln_bias});
    return op.out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("norm_bonus_gate");
    const variable_list s = ctx->get_saved_variables();
    operators::NormBonusGate op;
    op.y = s[0], op.r = s[1], op.k = s[2], op.v = s[3], op.g = s[4], op.r_k = s[5];
    op.ln_weight = s[6], op.ln_bias = s[7], op.eps = ctx->saved_data["eps"].toDouble();
    operators::NormBonusGateGrad d;
    d.Backward(op, grads[0].contiguous());
    return {d.d_y,        d.d_r,        d.d_k,
            d.d_v,        d.d_g,        d.weights[0].view(op.r_k.sizes()),
            d.weights[1], d.weights[2], at::Tensor()};
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

void operators::NormBonusGate::Forward() {
  Size(&out, y.sizes(), y.options());
  DispatchReal(y, "norm_bonus_gate", [&]<class Real>() {
    auto p = Params<Real>(*this);
    p.out = Out<Real>(out);
    const auto& ops = train::ActiveTrainOps<Real>();
    ParallelRowBlocks(
        p.R, [&](int64_t, int64_t begin, int64_t end) { ops.norm_bonus_gate(p, begin, end); });
  });
}

void operators::NormBonusGateGrad::Backward(const NormBonusGate& op, const at::Tensor& d_out) {
  for (at::Tensor* t : {&d_y, &d_r, &d_k, &d_v, &d_g}) Size(t, op.y.sizes(), op.y.options());
  DispatchReal(op.y, "norm_bonus_gate", [&]<class Real>() {
    train::NormBonusGateBackward<Real> q;
    q.forward = Params<Real>(op);
    q.d_out = Data<Real>(d_out);
    q.d_y = Out<Real>(d_y), q.d_r = Out<Real>(d_r), q.d_k = Out<Real>(d_k);
    q.d_v = Out<Real>(d_v), q.d_g = Out<Real>(d_g);
    const auto& ops = train::ActiveTrainOps<Real>();
    SumOverRowBlocks<Real>(
        q.forward.R, {3, op.y.size(2)}, op.y.options(),
        [&](int64_t begin, int64_t end, Real* sums) {
          ops.norm_bonus_gate_grad(q, begin, end, sums);
        },
        &partial, &weights);
  });
}

at::Tensor NormBonusGate(const at::Tensor& y, const at::Tensor& r, const at::Tensor& k,
                         const at::Tensor& v, const at::Tensor& g, const at::Tensor& r_k,
                         const at::Tensor& ln_weight, const at::Tensor& ln_bias, double eps) {
  static const auto op = FindOperator<decltype(NormBonusGate)>("skein::norm_bonus_gate");
  return op.call(y, r, k, v, g, r_k, ln_weight, ln_bias, eps);
}

}  // namespace skein::kernels
