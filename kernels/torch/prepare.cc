#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The inputs, checked and contiguous; v_raw and v_first are undefined in layer 0.
struct Inputs {
  at::Tensor k, v, a_raw, v_raw, v_first, k_k, k_a;
  int64_t H = 0;
};

Inputs Check(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
             const OptionalTensor& v_raw, const OptionalTensor& v_first, const at::Tensor& k_k,
             const at::Tensor& k_a, int64_t H) {
  TORCH_CHECK(k.dim() == 3, "skein::prepare: k must be [B, T, C], got ", k.sizes());
  const int64_t C = k.size(2);
  TORCH_CHECK(H > 0 && C % H == 0, "skein::prepare: ", C, " channels do not split into ", H,
              " heads");
  const auto type = k.scalar_type();
  Inputs in{Checked(k, "k", type, k.sizes()),
            Checked(v, "v", type, k.sizes()),
            Checked(a_raw, "a_raw", type, k.sizes()),
            OrUndefined(Checked(v_raw, "v_raw", type, k.sizes())),
            OrUndefined(Checked(v_first, "v_first", type, k.sizes())),
            Checked(k_k, "k_k", type, {C}),
            Checked(k_a, "k_a", type, {C}),
            H};
  TORCH_CHECK(in.v_raw.defined() == in.v_first.defined(),
              "skein::prepare: v_raw and v_first come together, or neither (layer 0)");
  return in;
}

template <class Real>
Four Run(const Inputs& in) {
  Four out{at::empty_like(in.k), at::empty_like(in.k), at::empty_like(in.k), at::empty_like(in.k)};
  train::PrepareForward<Real> p;
  p.R = in.k.size(0) * in.k.size(1), p.H = in.H, p.N = in.k.size(2) / in.H;
  p.k = Data<Real>(in.k), p.v = Data<Real>(in.v), p.a_raw = Data<Real>(in.a_raw);
  p.v_raw = Data<Real>(MaybeTensor(in.v_raw)), p.v_first = Data<Real>(MaybeTensor(in.v_first));
  p.k_k = Data<Real>(in.k_k), p.k_a = Data<Real>(in.k_a);
  p.k_out = Out<Real>(std::get<0>(out)), p.v_out = Out<Real>(std::get<1>(out));
  p.a_out = Out<Real>(std::get<2>(out)), p.b_out = Out<Real>(std::get<3>(out));
  const auto& ops = train::ActiveTrainOps<Real>();
  ParallelRowBlocks(p.R, [&](int64_t, int64_t begin, int64_t end) { ops.prepare(p, begin, end); });
  return out;
}

Four Cpu(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
         const OptionalTensor& v_raw, const OptionalTensor& v_first, const at::Tensor& k_k,
         const at::Tensor& k_a, int64_t H) {
  const Inputs in = Check(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
  return DispatchReal(k, "prepare", [&]<class Real>() { return Run<Real>(in); });
}

// d k, v, a_raw, v_raw, v_first, [k_k, k_a]; those of v are undefined in layer 0.
template <class Real>
variable_list Backward(const Inputs& in, const variable_list& grads) {
  const bool residual = in.v_raw.defined();
  variable_list d{at::empty_like(in.k), at::Tensor(), at::empty_like(in.k), at::Tensor(),
                  at::Tensor()};
  train::PrepareBackward<Real> p;
  p.R = in.k.size(0) * in.k.size(1), p.H = in.H, p.N = in.k.size(2) / in.H;
  p.k = Data<Real>(in.k), p.v = Data<Real>(in.v), p.a_raw = Data<Real>(in.a_raw);
  p.k_k = Data<Real>(in.k_k), p.k_a = Data<Real>(in.k_a);
  p.d_k_out = Data<Real>(grads[0]), p.d_a_out = Data<Real>(grads[2]),
  p.d_b_out = Data<Real>(grads[3]);
  p.d_k = Out<Real>(d[0]), p.d_a_raw = Out<Real>(d[2]);
  if (residual) {
    d[1] = at::empty_like(in.k), d[3] = at::empty_like(in.k), d[4] = at::empty_like(in.k);
    p.v_raw = Data<Real>(in.v_raw), p.v_first = Data<Real>(in.v_first),
    p.d_v_out = Data<Real>(grads[1]);
    p.d_v = Out<Real>(d[1]), p.d_v_raw = Out<Real>(d[3]), p.d_v_first = Out<Real>(d[4]);
  } else {
    d[1] = grads[1];
  }
  const auto& ops = train::ActiveTrainOps<Real>();
  d.push_back(SumOverRowBlocks<Real>(p.R, {2, in.k.size(2)}, in.k.options(),
                                     [&](int64_t begin, int64_t end, Real* partial) {
                                       ops.prepare_grad(p, begin, end, partial);
                                     }));
  return d;
}

class PrepareFunction : public torch::autograd::Function<PrepareFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& a_raw, const OptionalTensor& v_raw,
                               const OptionalTensor& v_first, const at::Tensor& k_k,
                               const at::Tensor& k_a, int64_t H) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const Inputs in = Check(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
    ctx->saved_data["H"] = H;
    ctx->save_for_backward({in.k, in.v, in.a_raw, in.v_raw, in.v_first, in.k_k, in.k_a});
    Four out = DispatchReal(k, "prepare", [&]<class Real>() { return Run<Real>(in); });
    return {std::get<0>(out), std::get<1>(out), std::get<2>(out), std::get<3>(out)};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("prepare");
    const variable_list s = ctx->get_saved_variables();
    const Inputs in{s[0], s[1], s[2], s[3], s[4], s[5], s[6], ctx->saved_data["H"].toInt()};
    for (at::Tensor& grad : grads) grad = grad.contiguous();
    const variable_list d =
        DispatchReal(in.k, "prepare", [&]<class Real>() { return Backward<Real>(in, grads); });
    return {d[0], d[1], d[2], d[3], d[4], d[5][0], d[5][1], at::Tensor()};
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

Four Prepare(const at::Tensor& k, const at::Tensor& v, const at::Tensor& a_raw,
             const std::optional<at::Tensor>& v_raw, const std::optional<at::Tensor>& v_first,
             const at::Tensor& k_k, const at::Tensor& k_a, int64_t H) {
  static const auto op = FindOperator<decltype(Prepare)>("skein::prepare");
  return op.call(k, v, a_raw, v_raw, v_first, k_k, k_a, H);
}

}  // namespace skein::kernels
