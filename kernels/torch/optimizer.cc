// AdamW and the squared norm: in place or without a derivative, so there is no Autograd
// implementation.

#include <torch/library.h>

#include <cmath>
#include <vector>

#include "kernels/torch/common.h"
#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

constexpr int64_t kGrain = 1 << 14;

void CheckFlat(const at::Tensor& t, const char* name, int64_t n) {
  TORCH_CHECK(t.device().is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous(),
              "skein: ", name, " must be a contiguous float CPU tensor");
  TORCH_CHECK(t.numel() == n, "skein: ", name, " has ", t.numel(), " elements, expected ", n);
}

void CpuAdamW(at::Tensor& param, const at::Tensor& grad, at::Tensor& m, at::Tensor& v, int64_t step,
              double lr, double beta1, double beta2, double eps, double weight_decay,
              double grad_scale) {
  const int64_t n = param.numel();
  CheckFlat(param, "param", n);
  CheckFlat(grad, "grad", n);
  CheckFlat(m, "m", n);
  CheckFlat(v, "v", n);
  TORCH_CHECK(step >= 1, "skein::adamw_: step counts from 1, got ", step);
  train::AdamWArgs p;
  p.param = Out<float>(param), p.grad = Data<float>(grad), p.m = Out<float>(m), p.v = Out<float>(v);
  p.beta1 = beta1, p.beta2 = beta2, p.eps = eps;
  p.step_size = lr / (1 - std::pow(beta1, step));
  p.inv_sqrt_bias2 = 1 / std::sqrt(1 - std::pow(beta2, step));
  p.decay = lr * weight_decay, p.grad_scale = grad_scale;
  const auto& ops = train::ActiveTrainOps<float>();
  ParallelRange(n, kGrain, [&](int64_t begin, int64_t end) { ops.adamw(p, begin, end); });
}

double CpuSquaredNorm(const at::Tensor& grad) {
  CheckFlat(grad, "grad", grad.numel());
  constexpr int64_t kBlock = train::kSquaredNormBlock;
  const int64_t n = grad.numel(), blocks = (n + kBlock - 1) / kBlock;
  const float* data = Data<float>(grad);
  std::vector<double> sums(blocks);
  ParallelRange(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = train::SquaredNormBlock(data + i * kBlock, std::min(kBlock, n - i * kBlock));
    }
  });
  double sum = 0;
  for (double s : sums) sum += s;
  return sum;
}

TORCH_LIBRARY_IMPL(skein, CPU, m) {
  m.impl("adamw_", CpuAdamW);
  m.impl("squared_norm", CpuSquaredNorm);
}

}  // namespace

void AdamW(at::Tensor& param, const at::Tensor& grad, at::Tensor& m, at::Tensor& v, int64_t step,
           double lr, double beta1, double beta2, double eps, double weight_decay,
           double grad_scale) {
  static const auto op = FindOperator<decltype(AdamW)>("skein::adamw_");
  op.call(param, grad, m, v, step, lr, beta1, beta2, eps, weight_decay, grad_scale);
}

double SquaredNorm(const at::Tensor& grad) {
  static const auto op = FindOperator<decltype(SquaredNorm)>("skein::squared_norm");
  return op.call(grad);
}

}  // namespace skein::kernels
