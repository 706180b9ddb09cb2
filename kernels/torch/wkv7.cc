#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

operators::Wkv7 Check(const at::Tensor& r, const at::Tensor& w_raw, const at::Tensor& k,
                      const at::Tensor& v, const at::Tensor& a, const at::Tensor& b,
                      const OptionalTensor& state, const OptionalTensor& reset, int64_t H) {
  TORCH_CHECK(r.dim() == 3 && r.size(1) >= 1, "skein::wkv7: r must be [B, T, C] with T >= 1, got ",
              r.sizes());
  const int64_t B = r.size(0), T = r.size(1), C = r.size(2);
  TORCH_CHECK(H > 0 && C % H == 0 && C / H % 16 == 0, "skein::wkv7: ", C, " channels in ", H,
              " heads; the head size must be a multiple of 16");
  const auto type = r.scalar_type();
  const int64_t N = C / H;
  operators::Wkv7 op;
  op.r = Checked(r, "r", type, r.sizes()), op.w_raw = Checked(w_raw, "w_raw", type, r.sizes());
  op.k = Checked(k, "k", type, r.sizes()), op.v = Checked(v, "v", type, r.sizes());
  op.a = Checked(a, "a", type, r.sizes()), op.b = Checked(b, "b", type, r.sizes());
  op.state = Checked(state, "state", type, {B, H, N, N});
  op.reset = Checked(reset, "reset", at::kBool, {B, T}), op.H = H;
  return op;
}

template <class Real>
train::Wkv7Forward<Real> Params(const operators::Wkv7& op) {
  train::Wkv7Forward<Real> p;
  p.B = op.r.size(0), p.T = op.r.size(1), p.H = op.H, p.N = op.r.size(2) / op.H;
  p.r = Data<Real>(op.r), p.w_raw = Data<Real>(op.w_raw), p.k = Data<Real>(op.k);
  p.v = Data<Real>(op.v), p.a = Data<Real>(op.a), p.b = Data<Real>(op.b);
  p.state = Data<Real>(op.state), p.reset = Data<bool>(op.reset);
  // Through const pointers: the backward pass only reads these, and reading must not count as a
  // change of a saved tensor.
  p.y = const_cast<Real*>(Data<Real>(op.y));
  p.final_state = const_cast<Real*>(Data<Real>(op.final_state));
  p.chunk_states = const_cast<Real*>(Data<Real>(op.chunk_states));
  p.sa = const_cast<Real*>(Data<Real>(op.sa));
  return p;
}

std::tuple<at::Tensor, at::Tensor> Cpu(const at::Tensor& r, const at::Tensor& w_raw,
                                       const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& a, const at::Tensor& b,
                                       const OptionalTensor& state, const OptionalTensor& reset,
                                       int64_t H) {
  operators::Wkv7 op = Check(r, w_raw, k, v, a, b, state, reset, H);
  op.Forward(false);
  return {op.y, op.final_state};
}

class Wkv7Function : public torch::autograd::Function<Wkv7Function> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& r, const at::Tensor& w_raw,
                               const at::Tensor& k, const at::Tensor& v, const at::Tensor& a,
                               const at::Tensor& b, const OptionalTensor& state,
                               const OptionalTensor& reset, int64_t H) {
    at::AutoDispatchBelowADInplaceOrView guard;
    operators::Wkv7 op = Check(r, w_raw, k, v, a, b, state, reset, H);
    op.Forward(true);
    ctx->set_materialize_grads(false);
    ctx->saved_data["H"] = H;
    ctx->save_for_backward({op.r, op.w_raw, op.k, op.v, op.a, op.b, op.state, op.reset,
                            op.final_state, op.chunk_states, op.sa});
    return {op.y, op.final_state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("wkv7");
    const variable_list s = ctx->get_saved_variables();
    operators::Wkv7 op;
    op.r = s[0], op.w_raw = s[1], op.k = s[2], op.v = s[3], op.a = s[4], op.b = s[5];
    op.state = s[6], op.reset = s[7], op.H = ctx->saved_data["H"].toInt();
    op.final_state = s[8], op.chunk_states = s[9], op.sa = s[10];
    operators::Wkv7Grad d;
    d.Backward(op, grads[0].defined() ? grads[0].contiguous() : at::zeros_like(op.r),
               grads[1].defined() ? grads[1].contiguous() : at::Tensor());
    const at::Tensor none;  // of reset and H
    return {d.d_r, d.d_w_raw, d.d_k, d.d_v, d.d_a, d.d_b, op.state.defined() ? d.d_state : none,
            none,  none};
  }
};

std::tuple<at::Tensor, at::Tensor> Differentiable(const at::Tensor& r, const at::Tensor& w_raw,
                                                  const at::Tensor& k, const at::Tensor& v,
                                                  const at::Tensor& a, const at::Tensor& b,
                                                  const OptionalTensor& state,
                                                  const OptionalTensor& reset, int64_t H) {
  if (!at::GradMode::is_enabled()) {  // nothing has to be kept
    at::AutoDispatchBelowADInplaceOrView guard;
    return Cpu(r, w_raw, k, v, a, b, state, reset, H);
  }
  variable_list out = Wkv7Function::apply(r, w_raw, k, v, a, b, state, reset, H);
  return {out[0], out[1]};
}

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("wkv7", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("wkv7", Differentiable); }

}  // namespace

void operators::Wkv7::Forward(bool keep) {
  const int64_t B = r.size(0), T = r.size(1), N = r.size(2) / H;
  Size(&y, r.sizes(), r.options());
  Size(&final_state, {B, H, N, N}, r.options());
  if (keep) {
    Size(&chunk_states, {B, H, (T + train::kChunk - 1) / train::kChunk, N, N}, r.options());
    Size(&sa, r.sizes(), r.options());
  }
  DispatchReal(r, "wkv7", [&]<class Real>() {
    const auto p = Params<Real>(*this);
    const auto& ops = train::ActiveTrainOps<Real>();
    const auto run = bf16 && ops.wkv7_bf16 != nullptr ? ops.wkv7_bf16 : ops.wkv7;
    ParallelRange(B * H, 1, [&](int64_t begin, int64_t end) { run(p, begin, end); });
  });
}

void operators::Wkv7Grad::Backward(const Wkv7& op, const at::Tensor& d_y,
                                   const at::Tensor& d_final_state) {
  for (at::Tensor* t : {&d_r, &d_w_raw, &d_k, &d_v, &d_a, &d_b})
    Size(t, op.r.sizes(), op.r.options());
  Size(&d_state, op.final_state.sizes(), op.r.options());
  DispatchReal(op.r, "wkv7", [&]<class Real>() {
    train::Wkv7Backward<Real> q;
    q.forward = Params<Real>(op);
    q.d_y = Data<Real>(d_y), q.d_final_state = Data<Real>(d_final_state);
    q.d_r = Out<Real>(d_r), q.d_w_raw = Out<Real>(d_w_raw), q.d_k = Out<Real>(d_k);
    q.d_v = Out<Real>(d_v), q.d_a = Out<Real>(d_a), q.d_b = Out<Real>(d_b);
    q.d_state = Out<Real>(d_state);
    const auto& ops = train::ActiveTrainOps<Real>();
    const auto run = op.bf16 && ops.wkv7_bf16_grad != nullptr ? ops.wkv7_bf16_grad : ops.wkv7_grad;
    ParallelRange(q.forward.B * q.forward.H, 1,
                  [&](int64_t begin, int64_t end) { run(q, begin, end); });
  });
}

std::tuple<at::Tensor, at::Tensor> Wkv7(const at::Tensor& r, const at::Tensor& w_raw,
                                        const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& a, const at::Tensor& b,
                                        const std::optional<at::Tensor>& state,
                                        const std::optional<at::Tensor>& reset, int64_t H) {
  static const auto op = FindOperator<decltype(Wkv7)>("skein::wkv7");
  return op.call(r, w_raw, k, v, a, b, state, reset, H);
}

}  // namespace skein::kernels
