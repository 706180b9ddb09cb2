#pragma once
// A small RWKV-7 none of whose gradients is zero, and data for it.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/randn.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "trainer/batches.h"
#include "trainer/models/rwkv7.h"

namespace skein::trainer {

inline std::unique_ptr<Rwkv7> SmallModel(int64_t layers, bool bf16 = false,
                                         int64_t head_size = 16) {
  ModelOptions options;
  options.layers = layers;
  options.width = 2 * head_size;
  options.head_size = head_size;
  auto model = std::make_unique<Rwkv7>(Rwkv7::Sizes(options, 257), bf16);
  model->Initialize(5);
  // The initial zeros hide gradients.
  at::Generator generator = at::detail::createCPUGenerator(3);
  at::Tensor& weights = model->parameters().master();
  weights.add_(at::randn(weights.sizes(), generator), 0.05);
  return model;
}

// Row n is made of n alone. One of its labels does not count, and one counts half; with resets, a
// document ends in it.
class SmallSource final : public BatchSource {
 public:
  explicit SmallSource(int64_t tokens, bool resets = false) : tokens_(tokens), resets_(resets) {}
  Batch Get(int64_t first, int64_t B) const override {
    std::vector<Row> rows;
    for (int64_t b = 0; b < B; ++b) {
      Row row;
      for (int64_t t = 0; t <= tokens_; ++t)
        row.tokens.push_back(static_cast<int32_t>(1 + (first + b) * 31 + t * t * 7) % 200 + 1);
      if (resets_) row.tokens[static_cast<size_t>(tokens_ / 2 + b % 3)] = 0;
      row.weights.assign(row.tokens.size(), 1.0f);
      row.weights[static_cast<size_t>(3 + (first + b) % 5)] = 0;
      row.weights[9] = 0.5f;
      rows.push_back(row);
    }
    return MakeBatch(rows, tokens_, true);
  }

 private:
  const int64_t tokens_;
  const bool resets_;
};

}  // namespace skein::trainer
