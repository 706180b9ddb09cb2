#pragma once
// Shared by the operators on tensors: checks with clear messages, threads, calls through the
// dispatcher.

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <optional>

#include "kernels/torch/operators.h"
#include "kernels/train/train_ops.h"

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace skein::kernels {

using OptionalTensor = std::optional<at::Tensor>;

// Flushes denormals on this thread while it lives: forgotten weights decay into them, and they cost
// a hundred times as much. Every operator runs its loops under it, so results do not depend on
// which thread did the work.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// body(begin, end) over [0, n), at least `grain` at a time.
template <class Body>
void ParallelRange(int64_t n, int64_t grain, const Body& body) {
  at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    FlushDenormals flush;
    body(begin, end);
  });
}

// body(block, begin, end) for blocks of kRowsPerBlock rows.
template <class Body>
void ParallelRowBlocks(int64_t rows, const Body& body) {
  constexpr int64_t kRows = train::kRowsPerBlock;
  ParallelRange((rows + kRows - 1) / kRows, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      body(block, block * kRows, std::min(rows, (block + 1) * kRows));
    }
  });
}

// Runs kernel(begin, end, partial) on row blocks; *out [sizes] is the sum of the partials.
template <class Real, class Kernel>
void SumOverRowBlocks(int64_t rows, at::IntArrayRef sizes, const at::TensorOptions& options,
                      const Kernel& kernel, at::Tensor* partial, at::Tensor* out) {
  operators::Size(out, sizes, options);
  const int64_t n = out->numel(), blocks = (rows + train::kRowsPerBlock - 1) / train::kRowsPerBlock;
  operators::Size(partial, {blocks, n}, options);
  Real* data = partial->mutable_data_ptr<Real>();
  ParallelRowBlocks(rows, [&](int64_t block, int64_t begin, int64_t end) {
    kernel(begin, end, data + block * n);
  });
  train::SumBlocks(data, blocks, n, out->mutable_data_ptr<Real>());
}

// `name` must be a CPU tensor of this type and shape; returned contiguous.
inline at::Tensor Checked(const at::Tensor& t, const char* name, at::ScalarType type,
                          at::IntArrayRef sizes) {
  TORCH_CHECK(t.defined() && t.device().is_cpu(), "skein: ", name, " must be a CPU tensor");
  TORCH_CHECK(t.scalar_type() == type, "skein: ", name, " is ", t.scalar_type(), ", expected ",
              type);
  TORCH_CHECK(t.sizes() == sizes, "skein: ", name, " has shape ", t.sizes(), ", expected ", sizes);
  return t.contiguous();
}

// Undefined where there is none.
inline at::Tensor Checked(const OptionalTensor& t, const char* name, at::ScalarType type,
                          at::IntArrayRef sizes) {
  if (!t.has_value() || !t->defined()) return at::Tensor();
  return Checked(*t, name, type, sizes);
}

// Null for a tensor that is not defined.
template <class Real>
const Real* Data(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<Real>() : nullptr;
}
template <class Real>
Real* Out(const at::Tensor& t) {
  return t.mutable_data_ptr<Real>();
}

// Calls f.template operator()<float or double>() by the type of `t`.
template <class F>
auto DispatchReal(const at::Tensor& t, const char* op, const F& f) {
  TORCH_CHECK(t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble, "skein::", op,
              " takes float or double, not ", t.scalar_type());
  return t.scalar_type() == at::kFloat ? f.template operator()<float>()
                                       : f.template operator()<double>();
}

// First line of every backward. Gradients of gradients would come out as zeros, so they are
// refused; and what the rest of it calls goes past autograd, which has nothing to record there.
class BackwardScope {
 public:
  explicit BackwardScope(const char* op) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "skein::", op,
                " cannot be differentiated twice (create_graph=True)");
  }

 private:
  at::AutoDispatchBelowADInplaceOrView guard_;
};

// The operator skein::<name>, with the signature of its C++ function.
template <class Function>
auto FindOperator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace skein::kernels
