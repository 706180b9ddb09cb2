#include "trainer/shards.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"

namespace skein::trainer {
namespace {

constexpr int64_t kLeastTokens = 256;                  // of a shard
constexpr int64_t kMostGradients = int64_t{64} << 20;  // floats, of the shards behind the first
constexpr int64_t kGrain = 1 << 14;                    // floats that a thread adds at least

}  // namespace

int64_t ShardCount(int64_t rows, int64_t T, int64_t parameters, int threads) {
  const bool pays = threads > 1 && rows % threads == 0 && rows / threads * T >= kLeastTokens &&
                    parameters <= kMostGradients / (threads - 1);
  return pays ? threads : 1;
}

void RunShards(int64_t count, const std::function<void(int64_t)>& shard) {
  if (count == 1) return shard(0);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) shard(i);
  });
}

Shards::Shards(Rwkv7* model, int64_t count) : models_{model} {
  for (int64_t i = 1; i < count; ++i) {
    twins_.push_back(model->Twin());
    models_.push_back(twins_.back().get());
  }
  for (Rwkv7* shard : models_) steps_.push_back(std::make_unique<Rwkv7Step>(shard));
}

std::vector<Batch> Shards::Get(const BatchSource& source, int64_t first, int64_t rows) const {
  SKEIN_CHECK(rows % count() == 0);
  const int64_t each = rows / count();
  std::vector<Batch> parts;
  for (int64_t i = 0; i < count(); ++i) parts.push_back(source.Get(first + i * each, each));
  return parts;
}

double Shards::Backward(const std::vector<Batch>& parts, const ForwardOptions& options,
                        double l2wrap, const LossDenominators& denominators,
                        const std::function<void(int)>& done) {
  SKEIN_CHECK(static_cast<int64_t>(parts.size()) == count());
  std::vector<double> sums(parts.size());
  const auto run = [&](size_t i) {
    ForwardOptions own = options;
    own.first_sample += static_cast<int64_t>(i) * parts[i].tokens.size(0);
    const Rwkv7Step::Loss loss = count() == 1
                                     ? steps_[i]->Run(parts[i], own, l2wrap, denominators, done)
                                     : steps_[i]->Run(parts[i], own, l2wrap, denominators);
    sums[i] = std::isfinite(loss.value) ? loss.cross_entropy_sum : loss.value;
  };
  RunShards(count(), [&](int64_t i) { run(static_cast<size_t>(i)); });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void Shards::SumGradients() {
  for (const auto& twin : twins_) {
    at::Tensor &total = models_[0]->parameters().gradient(), &part = twin->parameters().gradient();
    float *to = total.mutable_data_ptr<float>(), *from = part.mutable_data_ptr<float>();
    at::parallel_for(0, total.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] += from[i];
      std::fill(from + begin, from + end, 0.0f);
    });
  }
}

}  // namespace skein::trainer
