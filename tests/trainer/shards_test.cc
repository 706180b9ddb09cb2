#include "trainer/shards.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/trainer/small_model.h"

namespace skein::trainer {
namespace {

constexpr int64_t kRows = 6, kTokens = 20;

const SmallSource kSource(kTokens);

struct Outcome {
  double loss;
  at::Tensor gradient;
};

Outcome Accumulate(int64_t count, int64_t first, double dropout) {
  const auto model = SmallModel(2);
  Shards shards(model.get(), count);
  ForwardOptions forward;
  forward.dropout = dropout;
  forward.dropout_seed = 7;
  forward.first_sample = first;
  const double labels = kRows * (kTokens - 1.0), weights = labels - kRows * 0.5;
  const std::vector<Batch> parts = shards.Get(kSource, first, kRows);
  EXPECT_EQ(static_cast<int64_t>(parts.size()), count);
  double loss = 0;
  for (int part = 0; part < 2; ++part)  // gradients add up over micro-batches
    loss += shards.Backward(parts, forward, 1e-4, {weights, labels});
  shards.SumGradients();
  return {loss, model->parameters().gradient().clone()};
}

class ShardsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { at::set_num_threads(3); }
};

TEST_F(ShardsTest, GradientAndLossAreThoseOfOneShard) {
  for (const double dropout : {0.0, 0.2}) {
    const Outcome one = Accumulate(1, 40, dropout);
    for (const int64_t count : {2, 3, 6}) {
      const Outcome many = Accumulate(count, 40, dropout);
      EXPECT_NEAR(many.loss, one.loss, 1e-5 * one.loss);
      const double apart = (many.gradient - one.gradient).norm().item<double>();
      EXPECT_LT(apart, 1e-5 * one.gradient.norm().item<double>()) << count << ", " << dropout;
    }
    // Other samples, other masks: what the comparison above would not see is not small.
    const Outcome other = Accumulate(3, 41, dropout);
    EXPECT_GT((other.gradient - one.gradient).norm().item<double>(),
              1e-2 * one.gradient.norm().item<double>());
  }
}

TEST_F(ShardsTest, TheSameBitsEveryTime) {
  const Outcome first = Accumulate(3, 0, 0.1), second = Accumulate(3, 0, 0.1);
  EXPECT_EQ(first.loss, second.loss);
  EXPECT_TRUE(at::equal(first.gradient, second.gradient));
}

TEST_F(ShardsTest, ASecondSumFindsNothingLeft) {
  const auto model = SmallModel(1);
  Shards shards(model.get(), 2);
  shards.Backward(shards.Get(kSource, 0, kRows), {}, 0, {100, 100});
  shards.SumGradients();
  const at::Tensor sum = model->parameters().gradient().clone();
  EXPECT_GT(sum.norm().item<double>(), 0);
  shards.SumGradients();
  EXPECT_TRUE(at::equal(model->parameters().gradient(), sum));
}

TEST_F(ShardsTest, EachShardHasItsThread) {
  // What at::parallel_for is in a file that is not compiled for OpenMP: a loop on one thread.
  std::mutex mutex;
  std::set<std::thread::id> threads;
  RunShards(3, [&](int64_t) {
    EXPECT_TRUE(at::in_parallel_region());
    const std::lock_guard<std::mutex> lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(threads.size(), 3u);
}

TEST_F(ShardsTest, OneShardLeavesTheThreadsToTheOperators) {
  int calls = 0;
  RunShards(1, [&](int64_t) {
    ++calls;
    EXPECT_FALSE(at::in_parallel_region());
  });
  EXPECT_EQ(calls, 1);
}

TEST_F(ShardsTest, AsManyAsThreadsWhereThatPays) {
  EXPECT_EQ(ShardCount(12, 64, 1'000'000, 2), 2);
  EXPECT_EQ(ShardCount(12, 64, 1'000'000, 3), 3);
  EXPECT_EQ(ShardCount(12, 64, 1'000'000, 1), 1);
  EXPECT_EQ(ShardCount(12, 64, 1'000'000, 5), 1);         // a thread would have more than another
  EXPECT_EQ(ShardCount(12, 64, 1'000'000, 4), 1);         // 192 tokens each
  EXPECT_EQ(ShardCount(12, 64, int64_t{1} << 26, 2), 2);  // 256 MB more
  EXPECT_EQ(ShardCount(12, 64, (int64_t{1} << 26) + 1, 2), 1);
  EXPECT_EQ(ShardCount(64, 512, int64_t{1} << 26, 16), 1);
}

}  // namespace
}  // namespace skein::trainer
