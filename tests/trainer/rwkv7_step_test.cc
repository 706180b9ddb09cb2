// The training step by hand against autograd over the same operators.

#include "trainer/models/rwkv7_step.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/trainer/small_model.h"
#include "trainer/evaluate.h"

namespace skein::trainer {
namespace {

struct Case {
  int64_t layers, rows, tokens;
  bool bf16 = false, resets = false;
  double dropout = 0;
  int64_t head_size = 16;
};

class Rwkv7StepTest : public testing::TestWithParam<Case> {};

TEST_P(Rwkv7StepTest, LossAndEveryGradientAreThoseOfAutograd) {
  const Case& c = GetParam();
  at::set_num_threads(2);
  const auto model = SmallModel(c.layers, c.bf16, c.head_size), twin = model->Twin();
  ForwardOptions options;
  options.dropout = c.dropout;
  options.dropout_seed = 7;
  options.first_sample = 40;
  const LossDenominators denominators{50, 60};
  Rwkv7Step step(model.get());
  // bf16 rounds what differs in the last place to neighbours that differ by 2^-8; where it is
  // faster WKV-7 then keeps 16 bits of its factors, and that of autograd all of them.
  const double loss_tolerance = c.bf16 ? 1e-3 : 1e-5, tolerance = c.bf16 ? 1e-2 : 1e-5;
  // Gradients add up over batches, and what one of another shape left behind does no harm.
  for (const int64_t rows : {c.rows, c.rows + 1, c.rows}) {
    const Batch batch = SmallSource(c.tokens, c.resets).Get(40, rows);
    ASSERT_EQ(batch.reset.defined(), c.resets);
    const auto [loss, sum] = BatchLoss(*twin, batch, options, 1e-2, denominators);
    loss.backward();
    const Rwkv7Step::Loss own = step.Run(batch, options, 1e-2, denominators);
    EXPECT_NEAR(own.value, loss.item<double>(), loss_tolerance * own.value);
    EXPECT_NEAR(own.cross_entropy_sum, sum, loss_tolerance * sum);
  }
  for (size_t i = 0; i < model->parameters().list().size(); ++i) {
    const Parameter &own = model->parameters().list()[i], &other = twin->parameters().list()[i];
    const double norm = other.leaf.grad().norm().item<double>(),
                 apart = (own.leaf.grad() - other.leaf.grad()).norm().item<double>();
    EXPECT_GT(norm, 0) << own.names[0];
    EXPECT_LE(apart, tolerance * norm) << own.names[0];
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, Rwkv7StepTest,
    testing::Values(Case{1, 2, 20}, Case{2, 3, 17}, Case{4, 6, 40},
                    Case{.layers = 3, .rows = 2, .tokens = 33, .resets = true},
                    Case{.layers = 2, .rows = 2, .tokens = 20, .dropout = 0.2},
                    Case{.layers = 3, .rows = 4, .tokens = 30, .bf16 = true},
                    Case{.layers = 2, .rows = 2, .tokens = 20, .bf16 = true, .head_size = 64},
                    Case{.layers = 3,
                         .rows = 2,
                         .tokens = 50,
                         .resets = true,
                         .dropout = 0.1,
                         .head_size = 64}));

TEST(Rwkv7Step, SaysOfEachParameterOnceThatItsGradientIsComplete) {
  const auto model = SmallModel(3);
  Rwkv7Step step(model.get());
  const Batch batch = SmallSource(20).Get(0, 2);
  const at::Tensor& gradient = model->parameters().gradient();
  step.Run(batch, {}, 0, {40, 40});
  const at::Tensor whole = gradient.clone();
  gradient.zero_();
  std::vector<int> order;
  step.Run(batch, {}, 0, {40, 40}, [&](int i) {
    order.push_back(i);
    const Parameter& p = model->parameters().list()[static_cast<size_t>(i)];
    EXPECT_TRUE(at::equal(gradient.narrow(0, p.offset, p.elements()),
                          whole.narrow(0, p.offset, p.elements())))
        << p.names[0];
  });
  std::vector<int> expected;
  for (int i = static_cast<int>(model->parameters().list().size()) - 1; i >= 0; --i)
    expected.push_back(i);
  EXPECT_EQ(order, expected);
}

TEST(Rwkv7Step, ALossThatIsNotFiniteCompletesNothing) {
  const auto model = SmallModel(1);
  model->parameters().master().fill_(std::numeric_limits<float>::quiet_NaN());
  Rwkv7Step step(model.get());
  const Rwkv7Step::Loss loss =
      step.Run(SmallSource(20).Get(0, 2), {}, 0, {40, 40}, [](int) { FAIL(); });
  EXPECT_FALSE(std::isfinite(loss.value));
}

}  // namespace
}  // namespace skein::trainer
