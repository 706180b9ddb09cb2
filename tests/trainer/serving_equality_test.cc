// What the trainer computes and what the engine serves from the exported file are the same model.

#include <ATen/core/Tensor.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "engine/models/model.h"
#include "tests/temp_folder.h"
#include "trainer/export.h"
#include "trainer/models/rwkv7.h"

namespace skein::trainer {
namespace {

engine::ModelConfig SmallSizes() {
  ModelOptions options;
  options.layers = 3;
  options.width = 96;
  options.head_size = 32;
  return Rwkv7::Sizes(options, 130);
}

// Initialised as the recipe says, then moved away from it: many matrices of a fresh model are zero.
void Perturb(Rwkv7& model) {
  model.Initialize(3);
  at::Tensor& master = model.parameters().master();
  master.add_(at::randn_like(master), 0.05);
}

std::vector<float> Served(const std::string& path, engine::DType weights,
                          const std::vector<int32_t>& tokens) {
  std::string error;
  const auto device = kernels::NewCpuDevice({}, &error);
  EXPECT_NE(device, nullptr) << error;
  const auto checkpoint = engine::Checkpoint::Open(path);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  engine::ModelOptions options;
  options.weights = weights;
  const auto model = engine::Model::Load(**checkpoint, *device, options);
  EXPECT_TRUE(model.ok()) << model.status();
  const auto stream = device->NewStream();
  std::vector<float> state((*model)->config().state_floats(), 0.0f);
  const auto T = static_cast<int32_t>(tokens.size());
  const std::vector<int32_t> offsets = {0, T}, slots = {0};
  std::vector<int32_t> wanted(T);
  for (int32_t t = 0; t < T; ++t) wanted[t] = t;
  const float* logits = (*model)->Step({tokens, offsets, slots, wanted}, state.data(), *stream);
  return {logits, logits + int64_t{T} * (*model)->config().V};
}

double WorstRelativeError(bool bf16) {
  Rwkv7 model(SmallSizes(), bf16);
  Perturb(model);
  const std::string path = TempFolder() + "/serving_equality.safetensors";
  EXPECT_TRUE(ExportCheckpoint(path, model.parameters(), "fp32", {}).ok());

  std::vector<int32_t> tokens(50);
  for (int i = 0; i < 50; ++i) tokens[i] = (i * i * 7 + i * 3) % 130;
  const std::vector<int64_t> wide(tokens.begin(), tokens.end());
  const at::Tensor hidden =
      model.Hidden(at::tensor(wide, at::kLong).view({1, 50}), ForwardOptions());
  const at::Tensor logits = model.Logits(hidden).to(at::kFloat).contiguous();
  const std::vector<float> served =
      Served(path, bf16 ? engine::DType::kBF16 : engine::DType::kF32, tokens);
  EXPECT_EQ(logits.numel(), static_cast<int64_t>(served.size()));

  const float* trained = logits.data_ptr<float>();
  double worst = 0, scale = 0;
  for (size_t i = 0; i < served.size(); ++i) {
    worst = std::max<double>(worst, std::abs(trained[i] - served[i]));
    scale = std::max<double>(scale, std::abs(trained[i]));
  }
  EXPECT_GT(scale, 0.1);
  return worst / scale;
}

TEST(ServingEquality, Fp32) { EXPECT_LT(WorstRelativeError(false), 1e-5); }

// bf16 rounds the inputs of every product to 8 bits; the two sides round at the same places but sum
// in another order, and LibTorch may round a product's result once more.
TEST(ServingEquality, Bf16) { EXPECT_LT(WorstRelativeError(true), 0.05); }

}  // namespace
}  // namespace skein::trainer
