#include "trainer/optimizer.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trainer/models/rwkv7.h"

namespace skein::trainer {
namespace {

TEST(Groups, ByNameAndShape) {
  EXPECT_EQ(GroupOf("blocks.1.att.w0", {1, 1, 64}), Group::kDecayBase);
  EXPECT_EQ(GroupOf("blocks.1.att.key.weight", {64, 64}), Group::kMatrix);
  EXPECT_EQ(GroupOf("emb.weight", {257, 64}), Group::kMatrix);
  EXPECT_EQ(GroupOf("blocks.1.att.w1", {64, 32}), Group::kOther);
  EXPECT_EQ(GroupOf("blocks.1.ln1.weight", {64}), Group::kOther);
  EXPECT_EQ(GroupOf("blocks.1.att.r_k", {2, 32}), Group::kOther);
  EXPECT_EQ(GroupOf("blocks.1.att.x_k", {1, 1, 64}), Group::kOther);
}

class OptimizerTest : public testing::Test {
 protected:
  OptimizerTest() {
    decay_ = parameters_.Add({"blocks.0.att.w0"}, {1, 1, 16}, {16});
    matrix_ = parameters_.Add({"head.weight"}, {4, 5}, {4, 5});
    other_ = parameters_.Add({"ln_out.bias"}, {3}, {3});
    parameters_.Allocate();
    parameters_.master().fill_(1.0);
    config_.weight_decay = 0.5;
    config_.clip = 0;
  }
  float Value(int index) { return parameters_.leaf(index).detach().flatten()[0].item<float>(); }
  void SetGradient(float g) {
    for (const Parameter& p : parameters_.list()) p.leaf.grad().fill_(g);
  }
  Parameters parameters_;
  TrainConfig config_;
  int decay_, matrix_, other_;
};

// The first step of AdamW moves each weight by lr against the sign of its gradient.
TEST_F(OptimizerTest, GroupsGetTheirRateAndDecay) {
  Optimizer optimizer(&parameters_, config_);
  SetGradient(0.25f);
  optimizer.Step(0.01, optimizer.GradientNorm());
  EXPECT_NEAR(Value(other_), 1 - 0.01, 1e-6);
  EXPECT_NEAR(Value(decay_), 1 - 0.02, 1e-6);
  EXPECT_NEAR(Value(matrix_), 1 - 0.01 * (1 + 0.5), 1e-6);
  EXPECT_EQ(optimizer.GradientNorm(), 0);  // zeroed for the next step
}

TEST_F(OptimizerTest, ClipsByTheGlobalNorm) {
  config_.clip = 1;
  Optimizer optimizer(&parameters_, config_);
  SetGradient(3);
  const double norm = optimizer.GradientNorm();
  EXPECT_NEAR(norm, 3 * std::sqrt(16 + 20 + 3), 1e-4);
  optimizer.Step(0.01, norm);
  EXPECT_NEAR(optimizer.m()[0].item<float>(), 0.1 * 3 / norm, 1e-6);
}

TEST_F(OptimizerTest, SkipChangesNothing) {
  Optimizer optimizer(&parameters_, config_);
  SetGradient(NAN);
  EXPECT_TRUE(std::isnan(optimizer.GradientNorm()));
  optimizer.Skip();
  EXPECT_EQ(optimizer.updates(), 0);
  EXPECT_EQ(Value(matrix_), 1);
  EXPECT_EQ(optimizer.GradientNorm(), 0);
}

// Cut anywhere, a forward pass with a carried state gives what one pass gives.
TEST(Rwkv7, StateCarriesOn) {
  ModelOptions options;
  options.layers = 2;
  options.width = 48;
  options.head_size = 16;
  Rwkv7 model(Rwkv7::Sizes(options, 40), false);
  model.Initialize(5);
  at::Tensor& master = model.parameters().master();
  master.add_(at::randn_like(master), 0.05);
  const at::Tensor tokens = at::arange(2 * 21).mul(7).remainder(40).view({2, 21});
  const at::Tensor whole = model.Hidden(tokens, {}).detach();
  for (int64_t cut : {1, 8, 20}) {
    Rwkv7State state;
    ForwardOptions forward;
    forward.state = &state;
    const at::Tensor first = model.Hidden(tokens.narrow(1, 0, cut), forward).detach();
    const at::Tensor second = model.Hidden(tokens.narrow(1, cut, 21 - cut), forward).detach();
    EXPECT_TRUE(at::allclose(at::cat({first, second}, 1), whole, 1e-4, 1e-5)) << cut;
  }
}

TEST(Rwkv7, DropoutIsAFunctionOfItsSeedAndTheSample) {
  ModelOptions options;
  options.layers = 2;
  options.width = 32;
  options.head_size = 16;
  Rwkv7 model(Rwkv7::Sizes(options, 40), false);
  model.Initialize(5);
  const at::Tensor tokens = at::arange(30).view({2, 15});
  ForwardOptions a;
  a.dropout = 0.3;
  a.dropout_seed = 7;
  ForwardOptions b = a;
  b.dropout_seed = 8;
  const at::Tensor first = model.Hidden(tokens, a);
  EXPECT_TRUE(first.equal(model.Hidden(tokens, a)));
  EXPECT_FALSE(first.equal(model.Hidden(tokens, b)));
  // The second row alone, as another process has it.
  ForwardOptions second = a;
  second.first_sample = 1;
  EXPECT_TRUE(at::allclose(model.Hidden(tokens.narrow(0, 1, 1), second), first.narrow(0, 1, 1),
                           1e-4, 1e-5));
  EXPECT_FALSE(
      at::allclose(model.Hidden(tokens.narrow(0, 1, 1), a), first.narrow(0, 1, 1), 1e-4, 1e-5));
}

}  // namespace
}  // namespace skein::trainer
