#include "kernels/torch/product.h"

#include "kernels/torch/common.h"

namespace skein::kernels {
namespace {

void Run(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias, bool add,
         const at::Tensor& c) {
  train::ProductArgs p;
  p.M = a.size(0), p.N = b.size(1), p.K = a.size(1);
  p.a = Data<float>(a), p.a_row = a.stride(0), p.a_column = a.stride(1);
  p.b = Data<float>(b), p.b_row = b.stride(0), p.b_column = b.stride(1);
  p.bias = Data<float>(MaybeTensor(bias)), p.add = add, p.c = Out<float>(c);
  const auto& ops = train::ActiveTrainOps<float>();
  ParallelRange(p.tasks(), 1, [&](int64_t begin, int64_t end) { ops.product(p, begin, end); });
}

}  // namespace

bool HasTierProduct(at::ScalarType type) {
  return type == at::kFloat && train::ActiveTrainOps<float>().product != nullptr;
}

void TierProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias,
                 const at::Tensor& c) {
  Run(a, b, bias, false, c);
}

void AddTierProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  Run(a, b, at::Tensor(), true, c);
}

}  // namespace skein::kernels
