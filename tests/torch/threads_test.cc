// The operators on tensors give the same bits whatever the number of threads, forward and backward.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "kernels/torch_ops.h"

namespace skein::kernels {
namespace {

// The outputs of `op` on fresh leaves of these shapes and the gradients of the leaves, as one
// vector.
at::Tensor Run(const std::vector<std::vector<int64_t>>& shapes,
               const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>& op) {
  std::vector<at::Tensor> leaves, all;
  for (size_t i = 0; i < shapes.size(); ++i) {
    at::Tensor t = at::randn(shapes[i], at::detail::createCPUGenerator(i + 1), at::kFloat) * 0.3;
    leaves.push_back(t.requires_grad_());
  }
  at::Tensor total;
  for (const at::Tensor& out : op(leaves)) {
    all.push_back(out.detach().reshape(-1));
    total = total.defined() ? total + (out * out).sum() : (out * out).sum();
  }
  total.backward();
  for (const at::Tensor& leaf : leaves) all.push_back(leaf.grad().reshape(-1));
  return at::cat(all);
}

void ExpectSame(const std::vector<std::vector<int64_t>>& shapes,
                const std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>& op) {
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor expected = Run(shapes, op);
  EXPECT_TRUE(expected.isfinite().all().item<bool>());
  for (int threads : {2, 3}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(Run(shapes, op), expected)) << threads << " threads";
  }
  at::set_num_threads(before);
}

TEST(Threads, AddNormMix) {
  ExpectSame({{2, 150, 40}, {2, 150, 40}, {40}, {40}, {6, 40}}, [](const auto& x) {
    auto [sum, mixed] = AddNormMix(x[0], x[1], x[2], x[3], x[4], std::nullopt, 1e-5);
    mixed.push_back(sum);
    return mixed;
  });
}

TEST(Threads, Prepare) {
  const std::vector<int64_t> rows{2, 150, 64};
  ExpectSame({rows, rows, rows, rows, rows, {64}, {64}}, [](const auto& x) {
    auto [k, v, a, b] = Prepare(x[0], x[1], x[2], x[3], x[4], x[5], x[6], 2);
    return std::vector<at::Tensor>{k, v, a, b};
  });
}

TEST(Threads, Wkv7) {
  const std::vector<int64_t> rows{3, 37, 64};
  ExpectSame({rows, rows, rows, rows, rows, rows, {3, 2, 32, 32}}, [](const auto& x) {
    auto [y, state] = Wkv7(x[0], x[1], x[2], x[3], x[4] * 0.3, x[5] * 0.3, x[6], std::nullopt, 2);
    return std::vector<at::Tensor>{y, state};
  });
}

TEST(Threads, NormBonusGate) {
  const std::vector<int64_t> rows{2, 150, 64};
  ExpectSame({rows, rows, rows, rows, rows, {2, 32}, {64}, {64}}, [](const auto& x) {
    return std::vector<at::Tensor>{
        NormBonusGate(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], 64e-5)};
  });
}

TEST(Threads, ReluSquared) {
  ExpectSame({{100, 700}},
             [](const auto& x) { return std::vector<at::Tensor>{ReluSquared(x[0])}; });
}

TEST(Threads, SquaredNormAndAdamW) {
  const int before = at::get_num_threads();
  std::vector<double> norms;
  std::vector<at::Tensor> params;
  for (int threads : {1, 2, 3}) {
    at::set_num_threads(threads);
    const at::Tensor grad = at::randn({70001}, at::detail::createCPUGenerator(1), at::kFloat);
    at::Tensor param = grad.clone(), m = at::zeros({70001}), v = at::zeros({70001});
    for (int step = 1; step <= 2; ++step) {
      AdamW(param, grad, m, v, step, 1e-2, 0.9, 0.99, 1e-18, 0.1, 0.5);
    }
    norms.push_back(SquaredNorm(grad));
    params.push_back(param);
  }
  at::set_num_threads(before);
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(norms[0], norms[2]);
  EXPECT_TRUE(at::equal(params[0], params[1]));
  EXPECT_TRUE(at::equal(params[0], params[2]));
}

}  // namespace
}  // namespace skein::kernels
