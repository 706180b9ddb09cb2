// Decode and prefill through the whole engine loop (scheduler, step, sampler, output shards) at the
// shape of the 0.1B model with random weights, beside the floor: the longer of the bytes that must
// move at the bandwidth and the operations at the fp32 peak, both measured in this run. And the
// time of a decode step after 100 and after 100,000 tokens: a recurrent state does not grow. The
// hash is of the greedy tokens; it changes when the numbers do.
//
//   engine_bench [--shape tiny|0.1B] [--threads N] [--tier NAME] [--weights bf16|fp32|int8|int8a8]
//                [--rows 1,4,16,64] [--steps 40] [--json FILE]

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "bench/ceilings.h"
#include "bench/weights.h"
#include "bench/write_json.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/engine.h"
#include "tests/engine/random_model.h"

namespace skein::engine {
namespace {

using bench::NameOfWeights;
using bench::WeightsOf;

constexpr uint64_t kFingerprint = 1;
constexpr RandomShape kTiny{4, 128, 32, 257, 512, 32, 32, 32, 32, 1};

struct Options {
  std::string shape = "0.1B", tier, json;
  int threads = 0, steps = 40;
  DType weights = DType::kBF16;
  std::vector<int> rows = {1, 4, 16, 64};
};

// Every id is one letter: detokenizing costs next to nothing.
class LetterTokenizer final : public Tokenizer {
 public:
  explicit LetterTokenizer(int32_t V) : V_(V), kind_("letters") {}
  const std::string& kind() const override { return kind_; }
  int32_t vocab_size() const override { return V_; }
  void Encode(absl::string_view bytes, std::vector<int32_t>* tokens) const override {
    tokens->insert(tokens->end(), bytes.size(), 1);
  }
  absl::string_view Bytes(int32_t token) const override { return token == 0 ? "" : "x"; }
  bool IsValid(int32_t token) const override { return token >= 0 && token < V_; }

 private:
  const int32_t V_;
  const std::string kind_;
};

class Sink final : public ResponseSink {
 public:
  void OnQueued(int64_t) override {}
  void OnStarted(const StartedEvent&) override {}
  void OnProgress(const ProgressEvent&) override {}
  void OnOutput(std::vector<TokenEvent> events, std::string) override {
    for (const TokenEvent& event : events) tokens.push_back(event.token);
  }
  void OnFinished(const FinishedEvent&) override { done.Notify(); }
  void OnError(const absl::Status& status) override {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    std::exit(1);
  }
  bool Writable() const override { return true; }
  std::vector<int32_t> tokens;
  absl::Notification done;
};

class StepTimes final : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override {
    std::lock_guard<std::mutex> lock(mu_);
    steps_.push_back(report);
    tokens_ += report.tokens;
    stepped_.notify_one();
  }
  void OnRequestDone(const RequestReport&) override {}
  // The steps that read so many tokens, all since the last call. Waits for the last one: a request
  // hears of its end before the observer hears of the step.
  std::vector<StepReport> Take(int64_t tokens) {
    std::unique_lock<std::mutex> lock(mu_);
    SKEIN_CHECK(
        stepped_.wait_for(lock, std::chrono::minutes(1), [&] { return tokens_ >= tokens; }));
    SKEIN_CHECK(tokens_ == tokens);
    tokens_ = 0;
    return std::exchange(steps_, {});
  }

 private:
  std::mutex mu_;
  std::condition_variable stepped_;
  std::vector<StepReport> steps_;
  int64_t tokens_ = 0;
};

// How many tokens the model reads for a request: not the last one that it generates (or, when it
// generates none, that the prompt has), but the one that its conversation had left.
int64_t TokensRead(const GenerateRequest& request) {
  const bool goes_on = request.input.empty();
  return static_cast<int64_t>(request.input.size()) + goes_on + request.stopping.max_tokens - 1;
}

struct Done {
  std::vector<std::shared_ptr<Sink>> sinks;
  std::vector<StepReport> steps;
};

double Median(std::vector<double> values) {
  SKEIN_CHECK(!values.empty());
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

class EngineBench {
 public:
  EngineBench(const Options& options, const RandomShape& shape)
      : options_(options),
        shape_(shape),
        tokenizer_(shape.V),
        most_rows_(*std::max_element(options.rows.begin(), options.rows.end())) {
    std::string error;
    device_ = kernels::NewCpuDevice({options.threads, options.tier}, &error);
    if (device_ == nullptr) {
      std::fprintf(stderr, "%s\n", error.c_str());
      std::exit(1);
    }
    LoadRandom();
    stream_ = device_->NewStream();
    bandwidth_ = bench::ReadBandwidth(*device_, *stream_, model_->weight_bytes());
    peak_ = bench::PeakFlops(*stream_, device_->info().tier, options.weights);
    EngineOptions engine;
    engine.slots = most_rows_;
    engine.max_step_tokens = kStepTokens;
    engine.max_prefill_chunk = 256;
    engine.target_inter_token = absl::Seconds(100);  // prefill in whole chunks
    auto made =
        Engine::Create(*model_, *device_, tokenizer_, kFingerprint, engine, store_, &times_);
    SKEIN_CHECK(made.ok());
    engine_ = std::move(*made);
  }

  nlohmann::json Run(bool run_context) {
    std::printf("%s\n%s weights, tier %s, %d threads; read %.1f GB/s, peak %.0f GFLOP/s\n",
                model_->config().ToString().c_str(), Weights(), device_->info().tier.c_str(),
                device_->info().threads, bandwidth_ / 1e9, peak_ / 1e9);
    std::printf("%-24s %12s %12s %7s  %s\n", "", "measured", "floor", "ratio", "hash");
    for (const int rows : options_.rows) Decode(rows);
    Prefill(256);
    Prefill(1024);
    Context(run_context);
    return {{"shape", options_.shape},
            {"tier", device_->info().tier},
            {"threads", device_->info().threads},
            {"weights", Weights()},
            {"read_bytes_per_second", bandwidth_},
            {"peak_flops", peak_},
            {"results", results_}};
  }

 private:
  static constexpr int32_t kStepTokens = 512;

  void LoadRandom() {
    const char* folder = std::getenv("TMPDIR");
    const std::string path = absl::StrCat(folder != nullptr ? folder : "/tmp", "/engine_bench_",
                                          getpid(), ".safetensors");
    absl::Status written = RandomModel(shape_).Write(path);
    SKEIN_CHECK(written.ok());
    {
      auto checkpoint = Checkpoint::Open(path);
      SKEIN_CHECK(checkpoint.ok());
      ModelOptions load;
      load.weights = options_.weights;
      load.max_tokens = kStepTokens;
      load.max_rows = load.max_logits = most_rows_;
      auto model = Model::Load(**checkpoint, *device_, load);
      SKEIN_CHECK(model.ok());
      model_ = std::move(*model);
    }
    std::remove(path.c_str());
  }

  GenerateRequest Request(int row, int prompt, int max_tokens) {
    GenerateRequest request;
    request.request_id = absl::StrCat("r", next_++);
    for (int i = 0; i < prompt; ++i)
      request.input.push_back(1 + (row * 31 + i * 7) % (shape_.V - 1));
    request.sampling.temperature = 0;
    request.stopping.max_tokens = max_tokens;
    request.stopping.ignore_eos = true;
    return request;
  }
  Done RunAll(std::vector<GenerateRequest> requests) {
    std::vector<std::shared_ptr<Sink>> sinks;
    int64_t tokens = 0;
    for (GenerateRequest& request : requests) {
      tokens += TokensRead(request);
      sinks.push_back(std::make_shared<Sink>());
      SKEIN_CHECK(engine_->Submit(std::move(request), sinks.back()).ok());
    }
    for (const auto& sink : sinks) sink->done.WaitForNotification();
    return {std::move(sinks), times_.Take(tokens)};
  }
  static uint64_t Hash(const std::vector<std::shared_ptr<Sink>>& sinks) {
    uint64_t hash = 0;
    for (const auto& sink : sinks)
      hash = base::Hash64(sink->tokens.data(), sink->tokens.size() * 4, hash);
    return hash;
  }
  void Line(const std::string& name, double measured, double floor, uint64_t hash) {
    std::printf("%-24s %8.1f t/s %8.1f t/s %7.2f  %016llx\n", name.c_str(), measured, floor,
                measured / floor, static_cast<unsigned long long>(hash));
    std::fflush(stdout);
    results_.push_back({{"name", name},
                        {"tokens_per_second", measured},
                        {"floor", floor},
                        {"ratio", measured / floor},
                        {"hash", absl::StrCat(absl::Hex(hash))}});
  }
  // Seconds from one pure decode step of so many rows to the next: the step and the engine's own
  // work between two.
  static std::vector<double> DecodeSeconds(const std::vector<StepReport>& steps, int rows) {
    std::vector<double> seconds;
    for (const StepReport& step : steps) {
      if (step.decode_rows == rows && step.prefill_rows == 0) {
        seconds.push_back(absl::ToDoubleSeconds(step.duration + step.gap));
      }
    }
    return seconds;
  }
  // All weights but the embedding, of which a step reads only a row a token.
  double WeightBytes() const {
    const double embedding =
        double(shape_.V) * shape_.C * (options_.weights == DType::kF32 ? 4 : 2);
    return static_cast<double>(model_->weight_bytes()) - embedding;
  }

  const char* Weights() const { return NameOfWeights(options_.weights); }
  double HeadWeights() const { return double(shape_.V) * shape_.C; }
  double Matrices() const {  // of the blocks
    return static_cast<double>(model_->config().parameters) - 2 * HeadWeights();
  }
  double FloorSeconds(double bytes, double flops) const {
    return std::max(bytes / bandwidth_, peak_ > 0 ? flops / peak_ : 0);
  }

  void Decode(int rows) {
    std::vector<GenerateRequest> requests;
    for (int row = 0; row < rows; ++row) requests.push_back(Request(row, 4, options_.steps + rows));
    const Done done = RunAll(std::move(requests));
    const double seconds = Median(DecodeSeconds(done.steps, rows));
    const double state = 2.0 * static_cast<double>(model_->config().state_floats()) * sizeof(float);
    const double flops = 2 * rows * (Matrices() + HeadWeights());
    Line(absl::StrCat("decode B", rows), rows / seconds,
         rows / FloorSeconds(WeightBytes() + rows * state, flops), Hash(done.sinks));
  }

  void Prefill(int tokens) {
    std::vector<double> seconds;
    uint64_t hash = 0;
    for (int repeat = 0; repeat < 3; ++repeat) {
      const Done done = RunAll({Request(repeat, tokens, 1)});
      hash = Hash(done.sinks);
      double sum = 0;
      for (const StepReport& step : done.steps) sum += absl::ToDoubleSeconds(step.duration);
      seconds.push_back(sum);
    }
    const double flops = 2 * (Matrices() * tokens + HeadWeights());  // the head on the last only
    Line(absl::StrCat("prefill ", tokens), tokens / Median(seconds),
         tokens / FloorSeconds(WeightBytes(), flops), hash);
  }

  ModelTag Tag() const { return {kFingerprint, tokenizer_.Fingerprint()}; }

  // A conversation of 100,000 tokens: run, or (a large model) given the state after 100 and called
  // that long. How many tokens were read for it.
  int64_t MakeLongConversation(bool run) {
    constexpr int kLong = 100000;
    if (run) {
      GenerateRequest request = Request(1, kLong, 0);
      request.conversation_id = "long";
      request.create_if_missing = true;
      int64_t read = 0;
      const Done done = RunAll({std::move(request)});
      for (const StepReport& step : done.steps) read += step.tokens;
      return read;
    }
    auto snapshot = std::make_shared<StateSnapshot>(
        *store_.Peek({.key = {"", "short"}, .model = Tag()})->snapshot);
    snapshot->consumed = kLong - 1;
    const auto lease =
        store_.Acquire({.key = {"", "long"}, .model = Tag(), .create_if_missing = true});
    SKEIN_CHECK(lease.ok());
    SKEIN_CHECK(
        store_.Commit(*lease, Request(1, kLong, 0).input, {}, snapshot, "length", "made").ok());
    return 0;
  }

  void Context(bool run) {
    GenerateRequest request = Request(1, 100, 0);
    request.conversation_id = "short";
    request.create_if_missing = true;
    RunAll({std::move(request)});
    const int64_t read = MakeLongConversation(run);
    std::vector<double> seconds[2];
    const int repeats = run ? 100 : 4;  // the tiny model's steps are short, and noisy
    for (int repeat = 0; repeat < repeats; ++repeat) {  // by turns, so that a busy moment hits both
      for (int which = 0; which < 2; ++which) {
        GenerateRequest decode = Request(0, 0, options_.steps);
        decode.conversation_id = which == 0 ? "short" : "long";
        decode.commit = CommitMode::kNever;
        const Done done = RunAll({std::move(decode)});
        for (const double s : DecodeSeconds(done.steps, 1)) seconds[which].push_back(s);
      }
    }
    // The best of each: the work is always the same, what comes on top is the machine's noise.
    const double near = *std::min_element(seconds[0].begin(), seconds[0].end());
    const double far = *std::min_element(seconds[1].begin(), seconds[1].end());
    std::printf("best decode step after 100 tokens %.3f ms, after 100,000 %.3f ms, ratio %.3f\n",
                near * 1e3, far * 1e3, far / near);
    if (run) {
      std::printf("  (%lld tokens were read)\n", static_cast<long long>(read));
    } else {
      std::printf(
          "  (not read: the state after 100 tokens, called 100,000 old; --shape tiny reads "
          "them)\n");
    }
    results_.push_back({{"name", "context 100 and 100000"},
                        {"seconds", {near, far}},
                        {"ratio", far / near},
                        {"tokens_read", read}});
  }

  const Options options_;
  const RandomShape shape_;
  const LetterTokenizer tokenizer_;
  const int32_t most_rows_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<kernels::Stream> stream_;
  StepTimes times_;
  ConversationStore store_{ConversationStoreOptions{}};
  std::unique_ptr<Engine> engine_;
  double bandwidth_ = 0, peak_ = 0;
  int next_ = 0;
  nlohmann::json results_ = nlohmann::json::array();
};

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&]() -> std::string {
      if (++i < argc) return argv[i];
      std::fprintf(stderr, "%s needs a value\n", flag.c_str());
      std::exit(2);
    };
    const auto number = [&](const std::string& text) {
      int n = 0;
      if (absl::SimpleAtoi(text, &n) && n > 0) return n;
      std::fprintf(stderr, "%s: '%s' is not a positive number\n", flag.c_str(), text.c_str());
      std::exit(2);
    };
    if (flag == "--shape") {
      options.shape = value();
    } else if (flag == "--threads") {
      options.threads = number(value());
    } else if (flag == "--tier") {
      options.tier = value();
    } else if (flag == "--weights") {
      const std::optional<DType> type = WeightsOf(value());
      if (!type.has_value()) {
        std::fprintf(stderr, "--weights is bf16, fp32, int8 or int8a8\n");
        std::exit(2);
      }
      options.weights = *type;
    } else if (flag == "--steps") {
      options.steps = number(value());
    } else if (flag == "--rows") {
      options.rows.clear();
      for (const auto& text : absl::StrSplit(value(), ','))
        options.rows.push_back(number(std::string(text)));
    } else if (flag == "--json") {
      options.json = value();
    } else {
      std::fprintf(stderr, "unknown flag %s; see the head of bench/engine_bench.cc\n",
                   flag.c_str());
      std::exit(2);
    }
  }
  if (options.shape != "tiny" && options.shape != "0.1B") {
    std::fprintf(stderr, "--shape is tiny or 0.1B\n");
    std::exit(2);
  }
  return options;
}

int Main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  const bool tiny = options.shape == "tiny";
  EngineBench engine_bench(options, tiny ? kTiny : kShape01B);
  return bench::WriteJson(options.json, engine_bench.Run(tiny));
}

}  // namespace
}  // namespace skein::engine

int main(int argc, char** argv) { return skein::engine::Main(argc, argv); }
