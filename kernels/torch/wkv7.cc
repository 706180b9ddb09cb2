#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The inputs, checked and contiguous; state and reset may be undefined.
struct Inputs {
  at::Tensor r, w_raw, k, v, a, b, state, reset;
  int64_t H = 0;
};

// The results; chunk_states and sa only when a backward pass will read them.
struct Outputs {
  at::Tensor y, final_state, chunk_states, sa;
};

Inputs Check(const at::Tensor& r, const at::Tensor& w_raw, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& a, const at::Tensor& b, const OptionalTensor& state,
             const OptionalTensor& reset, int64_t H) {
  TORCH_CHECK(r.dim() == 3 && r.size(1) >= 1, "skein::wkv7: r must be [B, T, C] with T >= 1, got ",
              r.sizes());
  const int64_t B = r.size(0), T = r.size(1), C = r.size(2);
  TORCH_CHECK(H > 0 && C % H == 0 && C / H % 16 == 0, "skein::wkv7: ", C, " channels in ", H,
              " heads; the head size must be a multiple of 16");
  const auto type = r.scalar_type();
  const int64_t N = C / H;
  return {Checked(r, "r", type, r.sizes()),
          Checked(w_raw, "w_raw", type, r.sizes()),
          Checked(k, "k", type, r.sizes()),
          Checked(v, "v", type, r.sizes()),
          Checked(a, "a", type, r.sizes()),
          Checked(b, "b", type, r.sizes()),
          OrUndefined(Checked(state, "state", type, {B, H, N, N})),
          OrUndefined(Checked(reset, "reset", at::kBool, {B, T})),
          H};
}

template <class Real>
train::Wkv7Forward<Real> Params(const Inputs& in, const Outputs& out) {
  train::Wkv7Forward<Real> p;
  p.B = in.r.size(0), p.T = in.r.size(1), p.H = in.H, p.N = in.r.size(2) / in.H;
  p.r = Data<Real>(in.r), p.w_raw = Data<Real>(in.w_raw), p.k = Data<Real>(in.k),
  p.v = Data<Real>(in.v);
  p.a = Data<Real>(in.a), p.b = Data<Real>(in.b);
  p.state = Data<Real>(MaybeTensor(in.state)), p.reset = Data<bool>(MaybeTensor(in.reset));
  // Through const pointers: the backward pass only reads these, and reading must not count as a
  // change of a saved tensor.
  p.y = const_cast<Real*>(Data<Real>(MaybeTensor(out.y)));
  p.final_state = const_cast<Real*>(Data<Real>(out.final_state));
  p.chunk_states = const_cast<Real*>(Data<Real>(MaybeTensor(out.chunk_states)));
  p.sa = const_cast<Real*>(Data<Real>(MaybeTensor(out.sa)));
  return p;
}

Outputs Run(const Inputs& in, bool keep) {
  const int64_t B = in.r.size(0), T = in.r.size(1), H = in.H, N = in.r.size(2) / H;
  Outputs out{at::empty_like(in.r), at::empty({B, H, N, N}, in.r.options()), at::Tensor(),
              at::Tensor()};
  if (keep) {
    const int64_t chunks = (T + train::kChunk - 1) / train::kChunk;
    out.chunk_states = at::empty({B, H, chunks, N, N}, in.r.options());
    out.sa = at::empty_like(in.r);
  }
  DispatchReal(in.r, "wkv7", [&]<class Real>() {
    const auto p = Params<Real>(in, out);
    const auto& ops = train::ActiveTrainOps<Real>();
    ParallelRange(B * H, 1, [&](int64_t begin, int64_t end) { ops.wkv7(p, begin, end); });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> Cpu(const at::Tensor& r, const at::Tensor& w_raw,
                                       const at::Tensor& k, const at::Tensor& v,
                                       const at::Tensor& a, const at::Tensor& b,
                                       const OptionalTensor& state, const OptionalTensor& reset,
                                       int64_t H) {
  const Outputs out = Run(Check(r, w_raw, k, v, a, b, state, reset, H), false);
  return {out.y, out.final_state};
}

// d r, w_raw, k, v, a, b, state.
template <class Real>
variable_list Backward(const Inputs& in, const Outputs& out, const at::Tensor& d_y,
                       const at::Tensor& d_final_state) {
  variable_list d(6);
  for (at::Tensor& t : d) t = at::empty_like(in.r);
  d.push_back(at::empty_like(out.final_state));
  train::Wkv7Backward<Real> q;
  q.forward = Params<Real>(in, out);
  q.d_y = Data<Real>(d_y), q.d_final_state = Data<Real>(MaybeTensor(d_final_state));
  q.d_r = Out<Real>(d[0]), q.d_w_raw = Out<Real>(d[1]), q.d_k = Out<Real>(d[2]),
  q.d_v = Out<Real>(d[3]);
  q.d_a = Out<Real>(d[4]), q.d_b = Out<Real>(d[5]), q.d_state = Out<Real>(d[6]);
  const auto& ops = train::ActiveTrainOps<Real>();
  ParallelRange(q.forward.B * q.forward.H, 1,
                [&](int64_t begin, int64_t end) { ops.wkv7_grad(q, begin, end); });
  return d;
}

class Wkv7Function : public torch::autograd::Function<Wkv7Function> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& r, const at::Tensor& w_raw,
                               const at::Tensor& k, const at::Tensor& v, const at::Tensor& a,
                               const at::Tensor& b, const OptionalTensor& state,
                               const OptionalTensor& reset, int64_t H) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Inputs in = Check(r, w_raw, k, v, a, b, state, reset, H);
    const Outputs out = Run(in, true);
    ctx->set_materialize_grads(false);
    ctx->saved_data["H"] = H;
    ctx->save_for_backward({in.r, in.w_raw, in.k, in.v, in.a, in.b, in.state, in.reset,
                            out.final_state, out.chunk_states, out.sa});
    return {out.y, out.final_state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("wkv7");
    const variable_list s = ctx->get_saved_variables();
    const Inputs in{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], ctx->saved_data["H"].toInt()};
    const Outputs out{at::Tensor(), s[8], s[9], s[10]};
    const at::Tensor d_y = grads[0].defined() ? grads[0].contiguous() : at::zeros_like(in.r);
    const at::Tensor d_state = grads[1].defined() ? grads[1].contiguous() : at::Tensor();
    variable_list d = DispatchReal(
        in.r, "wkv7", [&]<class Real>() { return Backward<Real>(in, out, d_y, d_state); });
    if (!in.state.defined()) d[6] = at::Tensor();
    d.resize(9);  // reset and H have none
    return d;
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

std::tuple<at::Tensor, at::Tensor> Wkv7(const at::Tensor& r, const at::Tensor& w_raw,
                                        const at::Tensor& k, const at::Tensor& v,
                                        const at::Tensor& a, const at::Tensor& b,
                                        const std::optional<at::Tensor>& state,
                                        const std::optional<at::Tensor>& reset, int64_t H) {
  static const auto op = FindOperator<decltype(Wkv7)>("skein::wkv7");
  return op.call(r, w_raw, k, v, a, b, state, reset, H);
}

}  // namespace skein::kernels
