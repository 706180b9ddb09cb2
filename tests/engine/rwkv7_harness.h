#pragma once
// An engine over a random RWKV-7.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "tests/engine/engine_harness.h"
#include "tests/engine/random_model.h"
#include "tests/temp_folder.h"

namespace skein::engine {

struct RwkvParts {
  RwkvParts(const std::string& tier, DType weights) : tokenizer(NewByteTokenizer()) {
    std::string error;
    device = kernels::NewCpuDevice({.threads = 2, .tier = tier}, &error);
    SKEIN_CHECK(device != nullptr);
    RandomShape shape;
    shape.L = 3;
    shape.C = 96;  // three heads of 32
    shape.N = 32;
    const std::string path = TempFolder() + "/rwkv7_engine_test_" + tier + ".safetensors";
    SKEIN_CHECK(RandomModel(shape).Write(path).ok());
    auto checkpoint = Checkpoint::Open(path);
    SKEIN_CHECK(checkpoint.ok());
    auto loaded = Model::Load(
        **checkpoint, *device,
        {.weights = weights, .max_tokens = 128, .max_rows = 32, .max_logits = 32, .progress = {}});
    SKEIN_CHECK(loaded.ok());
    model = std::move(*loaded);
    std::remove(path.c_str());
  }
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<Model> model;
};

class RwkvHarness : public RwkvParts, public EngineHarness {
 public:
  RwkvHarness(const std::string& tier, DType weights)
      : RwkvParts(tier, weights), EngineHarness(*model, *device, *tokenizer) {
    options.slots = 32;
    options.max_step_tokens = 128;
  }
};

}  // namespace skein::engine
