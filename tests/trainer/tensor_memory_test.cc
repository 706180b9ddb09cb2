#include "trainer/tensor_memory.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <gtest/gtest.h>

#include <vector>

#include "trainer/models/rwkv7.h"
#include "trainer/models/rwkv7_step.h"
#include "trainer/optimizer.h"

namespace skein::trainer {
namespace {

class TensorMemoryTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    UseTensorMemory();
    at::set_num_threads(1);
  }
};

TEST_F(TensorMemoryTest, BlocksAreAlignedAndApart) {
  std::vector<at::Tensor> tensors;
  std::vector<int64_t> sizes = {0, 1, 15, 16, 17, 1000, 98304, 98305, 1 << 20, 5 << 20};
  for (int round = 0; round < 3; ++round) {
    for (const int64_t n : sizes) {
      tensors.push_back(at::full({n}, static_cast<double>(tensors.size()), at::kFloat));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(tensors.back().data_ptr()) % 64, 0u) << n;
    }
    tensors.erase(tensors.begin() + 3);  // its block goes to another of its size
    tensors.insert(tensors.begin() + 3, at::full({sizes[3]}, 3.0, at::kFloat));
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_EQ(tensors[i].numel(), sizes[i % sizes.size()]);
    EXPECT_TRUE(tensors[i].eq(static_cast<double>(i)).all().item<bool>()) << i;
  }
}

TEST_F(TensorMemoryTest, AFreedBlockIsTheNextOneOfItsSize) {
  void* first = at::empty({5000}).data_ptr();
  EXPECT_EQ(at::empty({4990}).data_ptr(), first);
  EXPECT_NE(at::empty({50000}).data_ptr(), first);
}

TEST_F(TensorMemoryTest, StepsTakeNothingFromTheSystemAfterTheFirst) {
  ModelOptions options;
  options.layers = 2;
  options.width = 64;
  options.head_size = 32;
  Rwkv7 model(Rwkv7::Sizes(options, 257), false);
  model.Initialize(1);
  Optimizer optimizer(&model.parameters(), TrainConfig());
  Rwkv7Step training(&model);
  Batch batch;
  batch.tokens = at::randint(1, 257, {16, 64}, at::kLong);
  batch.labels = batch.tokens.reshape({-1}).roll(-1);
  batch.used = batch.labels.numel();
  const int64_t start = TensorMemoryBytes();
  const auto step = [&] {
    const double rows = static_cast<double>(batch.used);
    training.Run(batch, {}, 1e-4, {rows, rows});
    optimizer.Step(1e-3, optimizer.GradientNorm());
  };
  step();
  step();
  const int64_t before = TensorMemoryBytes();
  EXPECT_GT(before, start);  // these steps' tensors do come from there
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(TensorMemoryBytes(), before);
}

}  // namespace
}  // namespace skein::trainer
