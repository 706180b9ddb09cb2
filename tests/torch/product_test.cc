// Every tier's product of bf16 factors against the plain loop.

#include "kernels/train/plain.h"
#include "tests/torch/arrays.h"

namespace skein::kernels::train {
namespace {

enum class To { kNothing, kBias, kResult };  // what a product is added to

struct Case {
  int64_t M, N, K;
  bool a_transposed, b_transposed;
  To to;
};

class Product : public testing::TestWithParam<Case> {};

TEST_P(Product, EveryTierEqualsThePlainLoop) {
  const Case& c = GetParam();
  Random random(c.M * 10000 + c.N * 100 + c.K);
  Arrays<float> arrays;
  ProductArgs p;
  p.M = c.M, p.N = c.N, p.K = c.K;
  p.a = arrays.In(random.Normal(c.M * c.K)), p.b = arrays.In(random.Normal(c.K * c.N));
  p.a_row = c.a_transposed ? 1 : c.K, p.a_column = c.a_transposed ? c.M : 1;
  p.b_row = c.b_transposed ? 1 : c.N, p.b_column = c.b_transposed ? c.K : 1;
  if (c.to == To::kBias) p.bias = arrays.In(random.Normal(c.N));
  p.add = c.to == To::kResult;
  const Doubles before = random.Normal(c.M * c.N);
  // What has to be overwritten is poisoned.
  const auto result = [&] {
    float* out = arrays.Out(c.M * c.N);
    if (p.add) std::copy(before.begin(), before.end(), out);
    return out;
  };
  float* expected = p.c = result();
  PlainProduct(p, 0, p.tasks());
  for (const TrainOps<float>* ops : Tiers()) {
    if (ops->product == nullptr) continue;
    SCOPED_TRACE(ops->tier);
    p.c = result();
    for (int64_t task = p.tasks() - 1; task >= 0; --task) ops->product(p, task, task + 1);
    for (int64_t i = 0; i < c.M * c.N; ++i) {
      ASSERT_NEAR(p.c[i], expected[i], 1e-5 * c.K) << "element " << i;
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int transposed = 0; transposed < 4; ++transposed) {
    const bool a = transposed & 1, b = transposed & 2;
    for (To to : {To::kNothing, To::kBias, To::kResult}) {
      cases.push_back({1, 1, 1, a, b, to});
      cases.push_back({33, 17, 31, a, b, to});
      cases.push_back({5, 100, 70, a, b, to});
      cases.push_back({96, 64, 128, a, b, to});
      cases.push_back({64, 96, 40, a, b, to});
      cases.push_back({48, 31, 33, a, b, to});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, Product, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace skein::kernels::train
