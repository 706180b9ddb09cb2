#include "engine/models/weight_loader.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "engine/models/model.h"
#include "engine/models/packed_file.h"
#include "tests/engine/random_model.h"
#include "tests/temp_folder.h"

namespace skein::engine {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// A line "Name:   123 kB" of /proc/self/status, in bytes.
int64_t Status(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return 0;
}

// 34 M weights, most of them in the embedding and the head.
void WriteFiles(const std::string& safetensors, const std::string& pth) {
  RandomShape shape;
  shape.L = 1;
  shape.C = 256;
  shape.N = 64;
  shape.V = 65536;
  shape.F = 1024;
  const RandomModel model(shape);
  ASSERT_TRUE(model.Write(safetensors).ok());
  ASSERT_TRUE(WritePth(pth, model.ToWrite()).ok());
}

// Loading takes a tenth of the weights and 64 MiB beside them at most, whatever it loads from.
class LoadMemory : public testing::Test {
 protected:
  // The peak while a checkpoint is opened, loaded and its fingerprint computed, over what the
  // process had before.
  void Check(const std::string& path, DType weights, const std::string& packed_path) {
    SCOPED_TRACE(path + " " + std::to_string(static_cast<int>(weights)) + " " + packed_path);
    std::string error;
    const auto device = kernels::NewCpuDevice({2, ""}, &error);
    ASSERT_TRUE(std::ofstream("/proc/self/clear_refs") << "5");  // the peak begins anew
    const int64_t before = Status("VmRSS");
    const auto checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok());
    PackedFile packed(**checkpoint, packed_path);
    ModelOptions options;
    options.weights = weights;
    options.max_tokens = options.max_rows = options.max_logits = 1;
    if (!packed_path.empty()) options.packed = &packed;
    const auto model = Model::Load(**checkpoint, *device, options);
    ASSERT_TRUE(model.ok()) << model.status();
    packed.Fingerprint(2);
    const int64_t peak = Status("VmHWM") - before, bytes = (*model)->weight_bytes();
    EXPECT_GE(peak, bytes) << "measures nothing";
    EXPECT_LE(peak, bytes + bytes / 10 + 64 * kMiB)
        << peak / kMiB << " MiB for weights of " << bytes / kMiB;
  }
};

TEST_F(LoadMemory, IsBounded) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "the sanitizer's own memory counts";
#endif
  const std::string safetensors = TempFolder() + "/m.safetensors", pth = TempFolder() + "/m.pth";
  WriteFiles(safetensors, pth);
  for (const DType weights : {DType::kF32, DType::kBF16, DType::kI8}) {
    for (const std::string& path : {safetensors, pth}) Check(path, weights, "");
    const std::string packed = PackedFile::PathFor(safetensors, "test", weights);
    Check(safetensors, weights, packed);  // writes
    Check(safetensors, weights, packed);  // reads
    std::remove(packed.c_str());
  }
}

// A vocabulary whose embedding and head are made in two pieces each says of its last tokens what a
// small one of these alone says.
TEST(WeightLoader, LargeMatricesAreMadeInPieces) {
  RandomShape shape;
  shape.L = 1;
  shape.C = 64;
  shape.V = 70000;  // 17.1 MiB of fp32
  RandomModel large(shape);
  constexpr int32_t kLast = 4000;
  const std::string path = TempFolder() + "/pieces.safetensors";
  for (const DType weights : {DType::kF32, DType::kBF16, DType::kI8}) {
    std::vector<float> logits[2];
    for (const int32_t V : {shape.V, kLast}) {
      std::vector<TensorToWrite> tensors = large.ToWrite();
      for (TensorToWrite& tensor : tensors) {
        if (tensor.name != "emb.weight" && tensor.name != "head.weight") continue;
        tensor.shape[0] = V;
        tensor.data = static_cast<const float*>(tensor.data) + int64_t{shape.V - V} * shape.C;
      }
      ASSERT_TRUE(WriteSafetensors(path, tensors, {}).ok());
      std::string error;
      const auto device = kernels::NewCpuDevice({2, ""}, &error);
      const auto checkpoint = Checkpoint::Open(path);
      ASSERT_TRUE(checkpoint.ok());
      ModelOptions options;
      options.weights = weights;
      options.max_tokens = options.max_rows = options.max_logits = 1;
      const auto model = Model::Load(**checkpoint, *device, options);
      ASSERT_TRUE(model.ok()) << model.status();
      std::vector<float> state((*model)->config().state_floats());
      const std::vector<int32_t> tokens = {V - 1}, offsets = {0, 1}, slots = {0}, wanted = {0};
      const auto stream = device->NewStream();
      const float* out = (*model)->Step({tokens, offsets, slots, wanted}, state.data(), *stream);
      logits[V == kLast].assign(out + V - kLast, out + V);
    }
    EXPECT_EQ(logits[0], logits[1]);
    EXPECT_NE(logits[0][0], logits[0][1]);
  }
}

}  // namespace
}  // namespace skein::engine
