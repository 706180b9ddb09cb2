#include "trainer/shards.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>
#include <vector>

namespace skein::trainer {
namespace {

constexpr int64_t kRows = 6, kTokens = 20;

// Row n is made of n alone. One of its labels does not count, and one counts half.
class Source final : public BatchSource {
 public:
  Batch Get(int64_t first, int64_t B) const override {
    std::vector<Row> rows;
    for (int64_t b = 0; b < B; ++b) {
      Row row;
      for (int64_t t = 0; t <= kTokens; ++t)
        row.tokens.push_back(static_cast<int32_t>(1 + (first + b) * 31 + t * t * 7) % 200 + 1);
      row.weights.assign(row.tokens.size(), 1.0f);
      row.weights[3 + (first + b) % 5] = 0;
      row.weights[9] = 0.5f;
      rows.push_back(row);
    }
    return MakeBatch(rows, kTokens, true);
  }
};

struct Outcome {
  double loss;
  at::Tensor gradient;
};

Outcome Accumulate(int64_t count, int64_t first, double dropout) {
  ModelOptions options;
  options.layers = 2;
  options.width = 32;
  options.head_size = 16;
  Rwkv7 model(Rwkv7::Sizes(options, 257), false);
  model.Initialize(5);
  model.parameters().master().add_(0.01);  // the initial zeros hide gradients
  Shards shards(&model, count);
  ForwardOptions forward;
  forward.dropout = dropout;
  forward.dropout_seed = 7;
  forward.first_sample = first;
  const double labels = kRows * (kTokens - 1.0), weights = labels - kRows * 0.5;
  const std::vector<Batch> parts = shards.Get(Source(), first, kRows);
  EXPECT_EQ(static_cast<int64_t>(parts.size()), count);
  double loss = 0;
  for (int part = 0; part < 2; ++part)  // gradients add up over micro-batches
    loss += shards.Backward(parts, forward, 1e-4, {weights, labels});
  shards.SumGradients();
  return {loss, model.parameters().gradient().clone()};
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
  ModelOptions options;
  options.layers = 1;
  options.width = 32;
  options.head_size = 16;
  Rwkv7 model(Rwkv7::Sizes(options, 257), false);
  model.Initialize(5);
  Shards shards(&model, 2);
  shards.Backward(shards.Get(Source(), 0, kRows), {}, 0, {100, 100});
  shards.SumGradients();
  const at::Tensor sum = model.parameters().gradient().clone();
  EXPECT_GT(sum.norm().item<double>(), 0);
  shards.SumGradients();
  EXPECT_TRUE(at::equal(model.parameters().gradient(), sum));
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
