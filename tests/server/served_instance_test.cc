#include "server/served_instance.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/checkpoint.h"
#include "engine/models/model.h"
#include "kernels/device.h"
#include "tests/engine/random_model.h"

namespace skein::server {
namespace {

// A model that is said not to fit is not served, so the estimate must be near what loading takes.
TEST(EstimateBytes, IsJustAboveTheWeightsOfEveryType) {
  const std::string path = absl::StrCat(testing::TempDir(), "/estimate_", getpid(), ".safetensors");
  engine::RandomShape shape{6, 512, 64, 4096, 2048};
  ASSERT_TRUE(
      engine::RandomModel(shape)
          .Write(path, {{engine::kMetaTokenizer, "bytes"}, {engine::kMetaChatTemplate, "none"}})
          .ok());
  const auto checkpoint = engine::Checkpoint::Open(path);
  ASSERT_TRUE(checkpoint.ok());
  std::string error;
  const auto device = kernels::NewCpuDevice({1, ""}, &error);
  ServerConfig config;
  const auto estimate = [&](const char* weights) {
    return *EstimateBytes({path, "", weights, ""}, config);
  };
  const int64_t beside = estimate("bf16") - 11 * 2 * (*checkpoint)->Config()->parameters / 10;
  for (const auto& [name, type] : {std::pair{"fp32", engine::DType::kF32},
                                   {"bf16", engine::DType::kBF16},
                                   {"int8", engine::DType::kI8},
                                   {"int8a8", engine::DType::kI8A8}}) {
    engine::ModelOptions options;
    options.weights = type;
    const auto model = engine::Model::Load(**checkpoint, *device, options);
    ASSERT_TRUE(model.ok()) << model.status();
    const double share = static_cast<double>(estimate(name) - beside) / (*model)->weight_bytes();
    EXPECT_GE(share, 1.0) << name;
    EXPECT_LE(share, 1.2) << name;
  }
  std::remove(path.c_str());
}

}  // namespace
}  // namespace skein::server
