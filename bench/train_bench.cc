// Tokens per second of whole training steps (forward, backward, clipping, AdamW) beside the floor:
// the products of the step at the fp32 or bf16 matrix ceiling that LibTorch reaches on this machine
// in this run. The hash is of the weights after the steps.
//
//   train_bench [--shape NAME] [--threads N] [--steps N] [--json FILE]

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <c10/core/GradMode.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/write_json.h"
#include "engine/base/file.h"
#include "trainer/compute.h"
#include "trainer/evaluate.h"
#include "trainer/models/rwkv7.h"
#include "trainer/optimizer.h"
#include "trainer/shards.h"
#include "trainer/tensor_memory.h"

namespace skein::trainer {
namespace {

struct Shape {
  const char* name;
  int64_t L, C, N, V, B, T;
};

// The first two are those of trainer/configs/.
constexpr Shape kShapes[] = {{"demo", 3, 128, 64, 633, 8, 128},
                             {"tiny-shakespeare", 4, 128, 64, 257, 12, 64},
                             {"L6-D384", 6, 384, 64, 257, 8, 256}};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename F>
double Best(int repeats, F f) {
  double best = 1e30;
  for (int i = 0; i < repeats; ++i) {
    const double start = Seconds();
    f();
    best = std::min(best, Seconds() - start);
  }
  return best;
}

double MatrixCeiling(bool bf16) {  // FLOP/s
  c10::AutoGradMode off(false);
  const at::Tensor a = at::ones({1024, 1024}, bf16 ? at::kBFloat16 : at::kFloat);
  return 2.0 * 1024 * 1024 * 1024 / Best(20, [&] { a.mm(a); });
}

// Of one token, forward and backward: 6 per weight of a product (the embedding is a look-up).
double FlopsPerToken(const Rwkv7& model) {
  double weights = 0;
  for (const Parameter& p : model.parameters().list()) {
    const bool product = p.shape.size() == 2 && p.names.size() == 1 && p.names[0] != "emb.weight" &&
                         p.names[0].find("r_k") == std::string::npos && p.shape[0] > 1;
    if (product) weights += static_cast<double>(p.elements());
  }
  return 6 * weights;
}

Batch RandomBatch(const Shape& s, int64_t rows) {
  Batch batch;
  batch.tokens = at::randint(1, s.V, {rows, s.T}, at::kLong);
  batch.labels = batch.tokens.reshape({-1}).roll(-1);
  batch.used = rows * s.T;
  batch.weight_sum = static_cast<double>(batch.used);
  return batch;
}

nlohmann::json RunShape(const Shape& s, bool bf16, int steps) {
  ModelOptions options;
  options.layers = s.L;
  options.width = s.C;
  options.head_size = s.N;
  Rwkv7 model(Rwkv7::Sizes(options, s.V), bf16);
  model.Initialize(1);
  at::manual_seed(1);
  Optimizer optimizer(&model.parameters(), TrainConfig());
  Shards shards(&model, ShardCount(s.B, s.T, model.parameters().count(), at::get_num_threads()));
  const std::vector<Batch> batches(shards.count(), RandomBatch(s, s.B / shards.count()));
  const double labels = static_cast<double>(s.B * s.T);
  const double step = Best(steps, [&] {
    shards.Backward(batches, {}, 1e-4, {labels, labels});
    shards.SumGradients();
    optimizer.Step(1e-4, optimizer.GradientNorm());
  });
  const double measured = static_cast<double>(s.B * s.T) / step;
  const double floor = MatrixCeiling(bf16) / FlopsPerToken(model);
  const at::Tensor& weights = model.parameters().master();
  const uint64_t hash = base::Hash64(weights.const_data_ptr<float>(), weights.nbytes());
  std::printf("%-18s %s  %8.0f tok/s   ceiling of its products %9.0f tok/s   ratio %.2f  %016llx\n",
              s.name, bf16 ? "bf16" : "fp32", measured, floor, measured / floor,
              static_cast<unsigned long long>(hash));
  std::fflush(stdout);
  return {{"shape", s.name},
          {"compute", bf16 ? "bf16" : "fp32"},
          {"tokens_per_second", measured},
          {"floor_tokens_per_second", floor},
          {"ratio", measured / floor},
          {"hash", absl::StrCat(absl::Hex(hash))}};
}

int Main(int argc, char** argv) {
  int64_t threads = 0;
  int steps = 10;
  std::string json_path, only;
  CLI::App app("training steps beside their floor", "train_bench");
  app.add_option("--shape", only, "demo, tiny-shakespeare or L6-D384; all without")
      ->check(CLI::IsMember({"demo", "tiny-shakespeare", "L6-D384"}));
  app.add_option("--threads", threads, "0: all that the process may use");
  app.add_option("--steps", steps, "of each shape; the best one counts")
      ->check(CLI::Range(1, 100000));
  app.add_option("--json", json_path, "also write the figures there");
  CLI11_PARSE(app, argc, argv);
  UseTensorMemory();  // as skein-train does
  std::printf("%d threads\n", SetUpThreads(threads));
  nlohmann::json results = nlohmann::json::array();
  for (const Shape& shape : kShapes) {
    if (!only.empty() && only != shape.name) continue;
    for (bool bf16 : {false, true}) results.push_back(RunShape(shape, bf16, steps));
  }
  return bench::WriteJson(json_path, results);
}

}  // namespace
}  // namespace skein::trainer

int main(int argc, char** argv) { return skein::trainer::Main(argc, argv); }
