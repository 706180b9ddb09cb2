#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 1 << 14;  // elements; below that a thread costs more than it saves

at::Tensor Cpu(const at::Tensor& x) {
  at::Tensor out;
  operators::ReluSquared(Checked(x, "x", x.scalar_type(), x.sizes()), &out);
  return out;
}

class ReluSquaredFunction : public torch::autograd::Function<ReluSquaredFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor in = x.contiguous();
    ctx->save_for_backward({in});
    return Cpu(in);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const BackwardScope scope("relu_squared");
    at::Tensor d_x;
    operators::ReluSquaredGrad(ctx->get_saved_variables()[0], grads[0].contiguous(), &d_x);
    return {d_x};
  }
};

at::Tensor Differentiable(const at::Tensor& x) { return ReluSquaredFunction::apply(x); }

TORCH_LIBRARY_IMPL(skein, CPU, m) { m.impl("relu_squared", Cpu); }
TORCH_LIBRARY_IMPL(skein, Autograd, m) { m.impl("relu_squared", Differentiable); }

}  // namespace

void operators::ReluSquared(const at::Tensor& x, at::Tensor* out) {
  Size(out, x.sizes(), x.options());
  DispatchReal(x, "relu_squared", [&]<class Real>() {
    const auto& ops = train::ActiveTrainOps<Real>();
    const Real* from = Data<Real>(x);
    Real* to = Out<Real>(*out);
    ParallelRange(x.numel(), kGrain,
                  [&](int64_t begin, int64_t end) { ops.relu_squared(from, to, begin, end); });
  });
}

void operators::ReluSquaredGrad(const at::Tensor& x, const at::Tensor& d_out, at::Tensor* d_x) {
  Size(d_x, x.sizes(), x.options());
  DispatchReal(x, "relu_squared", [&]<class Real>() {
    const auto& ops = train::ActiveTrainOps<Real>();
    const Real *in = Data<Real>(x), *grad = Data<Real>(d_out);
    Real* to = Out<Real>(*d_x);
    ParallelRange(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      ops.relu_squared_grad(in, grad, to, begin, end);
    });
  });
}

at::Tensor ReluSquared(const at::Tensor& x) {
  static const auto op = FindOperator<decltype(ReluSquared)>("skein::relu_squared");
  return op.call(x);
}

}  // namespace skein::kernels
