#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

operators::Prepare Check(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
                         const OptionalTensor& v_raw, const OptionalTensor& v_first,
                         const at::Tensor& k_k, const at::Tensor& k_a, int64_t H) {
  TORCH_CHECK(k.dim() == 3, "skein::prepare: k must be [B, T, C], got ", k.sizes());
  const int64_t C = k.size(2);
  TORCH_CHECK(H > 0 && C % H == 0, "skein::prepare: ", C, " channels do not split into ", H,
              " heads");
  const auto type = k.scalar_type();
  operators::Prepare op;
  op.k = Checked(k, "k", type, k.sizes()), op.v = Checked(v, "v", type, k.sizes());
  op.a_raw = Checked(a_raw, "a_raw", type, k.sizes());
  op.v_raw = Checked(v_raw, "v_raw", type, k.sizes());
  op.v_first = Checked(v_first, "v_first", type, k.sizes());
  op.k_k = Checked(k_k, "k_k", type, {C}), op.k_a = Checked(k_a, "k_a", type, {C}), op.H = H;
  TORCH_CHECK(op.v_raw.defined() == op.v_first.defined(),
              "skein::prepare: v_raw and v_first come together, or neither (layer 0)");
  return op;
}

template <class Real>
void Run(operators::Prepare* op) {
  train::PrepareForward<Real> p;
  p.R = op->k.size(0) * op->k.size(1), p.H = op->H, p.N = op->k.size(2) / op->H;
  p.k = Data<Real>(op->k), p.v = Data<Real>(op->v), p.a_raw = Data<Real>(op->a_raw);
  p.v_raw = Data<Real>(op->v_raw), p.v_first = Data<Real>(op->v_first);
  p.k_k = Data<Real>(op->k_k), p.k_a = Data<Real>(op->k_a);
  p.k_out = Out<Real>(op->k_out), p.v_out = Out<Real>(op->v_out);
  p.a_out = Out<Real>(op->a), p.b_out = Out<Real>(op->b);
  const auto& ops = train::ActiveTrainOps<Real>();
  ParallelRowBlocks(p.R, [&](int64_t, int64_t begin, int64_t end) { ops.prepare(p, begin, end); });
}

template <class Real>
void RunGrad(const operators::Prepare& op, const at::Tensor& d_k_out, const at::Tensor& d_v_out,
             const at::Tensor& d_a, const at::Tensor& d_b, operators::PrepareGrad* grad) {
  train::PrepareBackward<Real> p;
  p.R = op.k.size(0) * op.k.size(1), p.H = op.H, p.N = op.k.size(2) / op.H;
  p.k = Data<Real>(op.k), p.v = Data<Real>(op.v), p.a_raw = Data<Real>(op.a_raw);
  p.k_k = Data<Real>(op.k_k), p.k_a = Data<Real>(op.k_a);
  p.d_k_out = Data<Real>(d_k_out), p.d_a_out = Data<Real>(d_a), p.d_b_out = Data<Real>(d_b);
  p.d_k = Out<Real>(grad->d_k), p.d_a_raw = Out<Real>(grad->d_a_raw);
  if (op.v_raw.defined()) {
    p.v_raw = Data<Real>(op.v_raw), p.v_first = Data<Real>(op.v_first);
    p.d_v_out = Data<Real>(d_v_out), p.d_v = Out<Real>(grad->d_v);
    p.d_v_raw = Out<Real>(grad->d_v_raw), p.d_v_first = Out<Real>(grad->d_v_first);
  }
  const auto& ops = train::ActiveTrainOps<Real>();
  SumOverRowBlocks<Real>(
      p.R, {2, op.k.size(2)}, op.k.options(),
      [&](int64_t begin, int64_t end, Real* partial) { ops.prepare_grad(p, begin, end, partial); },
      &grad->partial, &grad->weights);
}

Four Cpu(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
         const OptionalTensor& v_raw, const OptionalTensor& v_first, const at::Tensor& k_k,
         const at::Tensor& k_a, int64_t H) {
  operators::Prepare op = Check(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
  op.Forward();
  return {op.k_out, op.v_out, op.a, op.b};
}

class PrepareFunction : public torch::autograd::Function<PrepareFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& a_raw, const OptionalTensor& v_raw,
                               const OptionalTensor& v_first, const at::Tensor& k_k,
                               const at::Tensor& k_a, int64_t H) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::Prepare op = Check(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
    op.Forward();
    ctx->saved_data["H"] = H;
    ctx->save_for_backward({op.k, op.v, op.a_raw, op.v_raw, op.v_first, op.k_k, op.k_a});
    return {op.k_out, op.v_out, op.a, op.b};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("prepare");
    const variable_list s = ctx->get_saved_variables();
    operators::Prepare op;
    op.k = s[0], op.v = s[1], op.a_raw = s[2], op.v_raw = s[3], op.v_first = s[4], op.k_k = s[5];
    op.k_a = s[6], op.H = ctx->saved_data["H"].toInt();
    for (at::Tensor& grad : grads) grad = grad.contiguous();
    operators::PrepareGrad d;
    d.Backward(op, grads[0], grads[1], grads[2], grads[3]);
    return {d.d_k,        op.v_raw.defined() ? d.d_v : grads[1],
            d.d_a_raw,    d.d_v_raw,
            d.d_v_first,  d.weights[0],
            d.weights[1], at::Tensor()};
  }
};

Four Differentiable(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
                    const OptionalTensor& v_raw, const OptionalTensor& v_first,
                    const at::Tensor& k_k, const at::Tensor& k_a, int64_t H) {
  variable_list out = PrepareFunction::apply(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
  return {out[0], out[1], out[2], out[3]};
}

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("prepare", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("prepare", Differentiable); }

}  // namespace

void operators::Prepare::Forward() {
  for (at::Tensor* t : {&k_out, &v_out, &a, &b}) Size(t, k.sizes(), k.options());
  DispatchReal(k, "prepare", [&]<class Real>() { Run<Real>(this); });
}

void operators::PrepareGrad::Backward(const Prepare& op, const at::Tensor& d_k_out,
                                      const at::Tensor& d_v_out, const at::Tensor& d_a,
                                      const at::Tensor& d_b) {
  for (at::Tensor* t : {&d_k, &d_a_raw}) Size(t, op.k.sizes(), op.k.options());
  if (op.v_raw.defined()) {
    for (at::Tensor* t : {&d_v, &d_v_raw, &d_v_first}) Size(t, op.k.sizes(), op.k.options());
  }
  DispatchReal(op.k, "prepare",
               [&]<class Real>() { RunGrad<Real>(op, d_k_out, d_v_out, d_a, d_b, this); });
}

Four Prepare(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
             const std::optional<at::Tensor>& v_raw, const std::optional<at::Tensor>& v_first,
             const at::Tensor& k_k, const at::Tensor& k_a, int64_t H) {
  static const auto op = FindOperator<decltype(Prepare)>("skein::prepare");
  return op.call(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
}

}  // namespace skein::kernels
