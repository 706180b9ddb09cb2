// Skein's side of the table of peers (run.py): the model alone, as llama_decode and the rwkv
// package are called alone. Prefill of one prompt (the head on its last token) and decode steps of
// B rows, in tokens per second, with the bytes that must move and the operations of each, and what
// this run's threads reach of both: run.py makes the floor of them.
//
//   skein_peer MODEL fp32|bf16|int8|int8a8 --json FILE [--threads N] [--tier NAME]
//              [--rows 1,4,8,16,32] [--prefill 256] [--seconds 2] [--logits FILE --prompt 1,2,3]
//              [--chunked-wkv]

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "bench/blocked_products.h"
#include "bench/cached_product.h"
#include "bench/ceilings.h"
#include "bench/weights.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/models/model.h"

namespace skein::engine {
namespace {

struct Options {
  std::string model, weights, tier, json, logits;
  int threads = 0, prefill = 256;
  double seconds = 2;
  bool chunked_wkv = false;
  std::vector<int32_t> rows = {1, 4, 8, 16, 32}, prompt;
};

class Peer {
 public:
  Peer(const Options& options, kernels::Device& device, Model& model)
      : options_(options),
        device_(device),
        model_(model),
        stream_(device.NewStream()),
        most_rows_(*std::max_element(options.rows.begin(), options.rows.end())),
        states_(device, most_rows_ * model.config().state_floats() * sizeof(float)) {
    const kernels::DType weights = *bench::WeightsOf(options.weights);
    const std::string& tier = device.info().tier;
    ceilings_ = {{"read_bytes_per_second", bench::ReadBandwidth(device, *stream_, WeightBytes())},
                 {"register_flops", bench::PeakFlops(*stream_, tier, weights)},
                 {"cache_flops", bench::BlockedFlops(device, *stream_, weights)},
                 {"cached_product_bytes_per_second",
                  bench::CachedProductBandwidth(device, *stream_, weights)}};
  }

  absl::Status WriteLogits() {
    const auto T = static_cast<int32_t>(options_.prompt.size());
    std::vector<int32_t> wanted(T);
    std::iota(wanted.begin(), wanted.end(), 0);
    Clear(1);
    const float* logits = Step(options_.prompt, {0, T}, wanted);
    return base::WriteFileAtomically(options_.logits,
                                     absl::string_view(reinterpret_cast<const char*>(logits),
                                                       sizeof(float) * T * model_.config().V));
  }

  nlohmann::json Run() {
    nlohmann::json result = {{"tier", device_.info().tier},
                             {"threads", device_.info().threads},
                             {"ceilings", ceilings_}};
    result["cells"]["prefill"] = Prefill();
    for (const int rows : options_.rows) result["cells"]["B" + std::to_string(rows)] = Decode(rows);
    return result;
  }

 private:
  void Clear(int rows) {
    std::memset(states_.data(), 0, rows * model_.config().state_floats() * sizeof(float));
  }

  const float* Step(const std::vector<int32_t>& tokens, const std::vector<int32_t>& offsets,
                    const std::vector<int32_t>& wanted) {
    std::vector<int32_t> slots(offsets.size() - 1);
    std::iota(slots.begin(), slots.end(), 0);
    return model_.Step({tokens, offsets, slots, wanted}, states_.as<float>(), *stream_);
  }

  int32_t Token(int64_t i) const {
    return static_cast<int32_t>(1 + i * 7 % (model_.config().V - 1));
  }

  // What a step must move and compute; run.py sets it against the machine's best in the whole run.
  nlohmann::json Cell(double tokens, double seconds, double bytes, double flops) const {
    return {{"tokens_per_second", tokens / seconds},
            {"tokens", tokens},
            {"bytes", bytes},
            {"flops", flops}};
  }

  nlohmann::json Prefill() {
    std::vector<int32_t> tokens(options_.prefill);
    for (int i = 0; i < options_.prefill; ++i) tokens[i] = Token(i);
    const bench::Timing time = bench::Measure(options_.seconds, [&] {
      Clear(1);
      Step(tokens, {0, options_.prefill}, {options_.prefill - 1});
    });
    return Cell(options_.prefill, time.median, WeightBytes(),
                2 * (Matrices() * options_.prefill + Head()));
  }

  nlohmann::json Decode(int rows) {
    Clear(rows);
    std::vector<int32_t> offsets(rows + 1), wanted(rows), tokens(rows);
    std::iota(offsets.begin(), offsets.end(), 0);
    std::iota(wanted.begin(), wanted.end(), 0);
    int64_t drawn = 0;
    const bench::Timing time = bench::Measure(options_.seconds, [&] {
      for (int32_t& token : tokens) token = Token(drawn++);
      Step(tokens, offsets, wanted);
    });
    const double state = 2.0 * static_cast<double>(model_.config().state_floats()) * sizeof(float);
    return Cell(rows, time.median, WeightBytes() + rows * state, 2 * rows * (Matrices() + Head()));
  }

  double Head() const { return static_cast<double>(model_.config().V) * model_.config().C; }
  double Matrices() const {  // weights of the blocks
    return static_cast<double>(model_.config().parameters) - 2 * Head();
  }
  // What a step reads: all but the embedding, of which it reads a row a token.
  double WeightBytes() const {
    return static_cast<double>(model_.weight_bytes()) -
           Head() * (options_.weights == "fp32" ? 4 : 2);
  }

  const Options& options_;
  kernels::Device& device_;
  Model& model_;
  const std::unique_ptr<kernels::Stream> stream_;
  const int32_t most_rows_;
  const kernels::Buffer states_;
  nlohmann::json ceilings_;  // of this machine and these weights, per second
};

absl::Status Run(const Options& options) {
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                         Checkpoint::Open(options.model));
  std::string error;
  const auto device = kernels::NewCpuDevice({options.threads, options.tier}, &error);
  if (device == nullptr) return absl::InvalidArgumentError(error);
  ModelOptions load;
  load.weights = *bench::WeightsOf(options.weights);
  load.chunked_wkv = options.chunked_wkv;
  const auto prompt = static_cast<int32_t>(options.prompt.size());
  load.max_rows = *std::max_element(options.rows.begin(), options.rows.end());
  load.max_tokens = std::max({options.prefill, load.max_rows, prompt});
  load.max_logits = std::max(load.max_rows, prompt);
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<Model> model,
                         Model::Load(*checkpoint, *device, load));
  Peer peer(options, *device, *model);
  if (!options.logits.empty()) SKEIN_RETURN_IF_ERROR(peer.WriteLogits());
  return base::WriteFileAtomically(options.json, peer.Run().dump(2));
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Skein's rows of the table of peers", "skein_peer");
  app.add_option("model", options.model, "checkpoint")->required();
  app.add_option("weights", options.weights)
      ->required()
      ->check(CLI::IsMember({"fp32", "bf16", "int8", "int8a8"}));
  app.add_option("--json", options.json, "figures go there")->required();
  app.add_option("--threads", options.threads, "0: all that the process may use");
  app.add_option("--tier", options.tier, "empty: $SKEIN_CPU, or the best");
  app.add_option("--rows", options.rows)->delimiter(',')->check(CLI::Range(1, 1024));
  app.add_option("--prefill", options.prefill)->check(CLI::Range(1, 65536));
  app.add_option("--seconds", options.seconds, "of each figure")->check(CLI::PositiveNumber);
  app.add_option("--logits", options.logits, "fp32 [prompt, V] go there");
  app.add_option("--prompt", options.prompt, "token ids")->delimiter(',');
  app.add_flag("--chunked-wkv", options.chunked_wkv, "as cpu.chunked_wkv; amx");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (status.ok()) return 0;
  std::fprintf(stderr, "skein_peer: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace skein::engine

int main(int argc, char** argv) { return skein::engine::Main(argc, argv); }
