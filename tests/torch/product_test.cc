// Every tier's product of bf16 factors against the plain loop.

#include "kernels/train/plain.h"
#include "tests/torch/arrays.h"

namespace skein::kernels::train {
namespace {

struct Case {
  int64_t M, N, K;
  bool a_transposed, b_transposed, bias;
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
  if (c.bias) p.bias = arrays.In(random.Normal(c.N));
  const int64_t blocks = (c.M + kProductRows - 1) / kProductRows;
  float* expected = p.c = arrays.Out(c.M * c.N);
  PlainProduct(p, 0, blocks);
  for (const TrainOps<float>* ops : Tiers()) {
    if (ops->product == nullptr) continue;
    SCOPED_TRACE(ops->tier);
    p.c = arrays.Out(c.M * c.N);
    for (int64_t block = blocks - 1; block >= 0; --block) ops->product(p, block, block + 1);
    for (int64_t i = 0; i < c.M * c.N; ++i) {
      ASSERT_NEAR(p.c[i], expected[i], 1e-5 * c.K) << "element " << i;
    }
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int transposed = 0; transposed < 4; ++transposed) {
    const bool a = transposed & 1, b = transposed & 2;
    for (bool bias : {false, true}) {
      cases.push_back({1, 1, 1, a, b, bias});
      cases.push_back({33, 17, 31, a, b, bias});
      cases.push_back({5, 100, 70, a, b, bias});
      cases.push_back({96, 64, 128, a, b, bias});
      cases.push_back({48, 31, 33, a, b, bias});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, Product, testing::ValuesIn(Cases()));

}  // namespace
}  // namespace skein::kernels::train
