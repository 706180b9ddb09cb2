#include "kernels/torch/product.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include "kernels/torch/common.h"

namespace skein::kernels {
namespace {

void RunTier(const Factor& a, const Factor& b, const at::Tensor& bias, bool add,
             const at::Tensor& c) {
  train::ProductArgs p;
  p.M = a.rows(), p.N = b.columns(), p.K = a.columns();
  p.a = Data<float>(a.tensor), p.b = Data<float>(b.tensor);
  p.a_row = a.transposed ? 1 : p.K, p.a_column = a.transposed ? p.M : 1;
  p.b_row = b.transposed ? 1 : p.N, p.b_column = b.transposed ? p.K : 1;
  p.bias = bias.defined() ? Data<float>(bias) : nullptr, p.add = add, p.c = Out<float>(c);
  const auto& ops = train::ActiveTrainOps<float>();
  ParallelRange(p.tasks(), 1, [&](int64_t begin, int64_t end) { ops.product(p, begin, end); });
}

at::Tensor RoundedProduct(const Factor& a, const Factor& b) {
  return at::mm(a.view().to(at::kBFloat16), b.view().to(at::kBFloat16));
}

}  // namespace

at::Tensor Factor::view() const {
  const at::Tensor rows = tensor.view({rest(), last()});
  return transposed ? rows.t() : rows;
}

bool HasTierProduct(at::ScalarType type) {
  return type == at::kFloat && train::ActiveTrainOps<float>().product != nullptr;
}

void Multiply(const Factor& a, const Factor& b, const at::Tensor& bias, bool bf16,
              const at::Tensor& c) {
  if (bf16 && HasTierProduct(c.scalar_type())) return RunTier(a, b, bias, false, c);
  at::Tensor to = Factor{c}.view();
  if (bf16) {
    to.copy_(RoundedProduct(a, b));
    if (bias.defined()) to.add_(bias);
  } else if (bias.defined()) {
    at::addmm_out(to, bias, a.view(), b.view());
  } else {
    at::mm_out(to, a.view(), b.view());
  }
}

void AddProduct(const Factor& a, const Factor& b, bool bf16, const at::Tensor& c) {
  if (bf16 && HasTierProduct(c.scalar_type())) return RunTier(a, b, at::Tensor(), true, c);
  at::Tensor to = Factor{c}.view();
  if (bf16) {
    to.add_(RoundedProduct(a, b));
  } else {
    at::addmm_out(to, to, a.view(), b.view());
  }
}

}  // namespace skein::kernels
