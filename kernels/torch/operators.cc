#include "kernels/torch/operators.h"

#include "kernels/torch/common.h"

namespace skein::kernels::operators {

void Size(at::Tensor* t, at::IntArrayRef sizes, const at::TensorOptions& options) {
  if (!t->defined() || t->sizes() != sizes) *t = at::empty(sizes, options);
}

void Add(const at::Tensor& from, const at::Tensor& to) {
  constexpr int64_t kGrain = 1 << 14;
  DispatchReal(to, "add", [&]<class Real>() {
    const Real* source = Data<Real>(from);
    Real* sums = Out<Real>(to);
    ParallelRange(to.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sums[i] += source[i];
    });
  });
}

}  // namespace skein::kernels::operators
