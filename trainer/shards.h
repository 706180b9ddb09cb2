#pragma once
// Threads that share a micro-batch by its samples: each takes a shard through the whole model,
// forward and backward, with a gradient of its own, and the gradients are added at the end of the
// step. Against threads that share every operator there is one meeting a step instead of some
// hundred, and what a thread reads it has mostly written itself.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "trainer/batches.h"
#include "trainer/models/rwkv7.h"
#include "trainer/models/rwkv7_step.h"

namespace skein::trainer {

// How many shards of `rows` samples of T tokens: as many as threads, or one, whose threads share
// the operators, where that would leave a thread without work, a shard would have less to do than
// its gradient costs, or those gradients would take much memory.
int64_t ShardCount(int64_t rows, int64_t T, int64_t parameters, int threads);

// shard(i) for i below `count`, each on a thread of its own, on which what LibTorch would spread
// over threads stays. A single one runs on this thread and has all of them.
void RunShards(int64_t count, const std::function<void(int64_t)>& shard);

class Shards {
 public:
  // `model`, whose gradient will be the sum, outlives the shards.
  Shards(Rwkv7* model, int64_t count);

  int64_t count() const { return static_cast<int64_t>(models_.size()); }

  // Samples [first, first + rows) in as many parts; rows is a multiple of the count.
  std::vector<Batch> Get(const BatchSource& source, int64_t first, int64_t rows) const;

  // Adds the gradient of these parts, each to its shard's. Returns the weighted sum of their
  // cross-entropies; where a loss is not finite, so is the sum, and the gradient is worth nothing.
  // done(i): the gradient of parameter i is complete; a single shard says that while the pass goes
  // on, several do not.
  double Backward(
      const std::vector<Batch>& parts, const ForwardOptions& options, double l2wrap,
      const LossDenominators& denominators, const std::function<void(int)>& done = [](int) {});

  // Moves the gradients of all shards into the model's.
  void SumGradients();

 private:
  std::vector<std::unique_ptr<Rwkv7>> twins_;      // of the shards behind the first
  std::vector<Rwkv7*> models_;                     // the first shard's is the model itself
  std::vector<std::unique_ptr<Rwkv7Step>> steps_;  // of each
};

}  // namespace skein::trainer
