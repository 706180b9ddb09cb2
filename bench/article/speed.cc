#include "bench/article/speed.h"

#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <c10/core/InferenceMode.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/article/transformer.h"
#include "bench/ceilings.h"
#include "engine/base/check.h"
#include "engine/models/model.h"
#include "tests/engine/random_model.h"
#include "trainer/compute.h"

namespace skein::article {
namespace {

// Resident memory of this process, bytes. What was freed goes back to the system first: memory that
// is used a second time would not be counted.
int64_t Resident() {
  malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  SKEIN_CHECK(resident > 0);
  return resident * sysconf(_SC_PAGESIZE);
}

// What can still be had: free memory of the machine, and the process's limit less what it holds.
int64_t AvailableMemory() {
  std::ifstream file("/proc/meminfo");
  int64_t kilobytes = 0;
  for (std::string line; std::getline(file, line);)
    if (std::sscanf(line.c_str(), "MemAvailable: %ld kB", &kilobytes) == 1) break;
  return std::min(kilobytes << 10, kernels::UsableMemoryBytes() - Resident());
}

// Empty when there is memory for `bytes`. Linux would promise it and then kill the process, so it
// is looked at before.
std::string WhyNoMemory(int64_t bytes) {
  const int64_t available = AvailableMemory();
  if (bytes < available * 0.95) return "";
  return absl::StrFormat("out of memory: %.1f GB, %.1f GB are free",
                         static_cast<double>(bytes) / 1e9, static_cast<double>(available) / 1e9);
}

class Skein {
 public:
  static absl::StatusOr<std::unique_ptr<Skein>> Create(const SpeedOptions& options) {
    std::unique_ptr<Skein> skein(new Skein(options));
    SKEIN_RETURN_IF_ERROR(skein->Load());
    return skein;
  }

  int64_t state_bytes() const {
    return model_->config().state_floats() * static_cast<int64_t>(sizeof(float));
  }
  const engine::ModelConfig& config() const { return model_->config(); }
  const kernels::DeviceInfo& info() const { return device_->info(); }
  double bandwidth() const { return bandwidth_; }
  // Of one row: all weights but the embedding, its state in and out.
  double FloorSeconds() const {
    const double embedding = 2.0 * config().V * config().C;
    return (static_cast<double>(model_->weight_bytes()) - embedding + 2.0 * state_bytes()) /
           bandwidth_;
  }

  // Reads on, in one conversation, until `context` tokens are read, and keeps that state.
  void ReadTo(int64_t context) {
    std::vector<int32_t> tokens;
    while (read_ < context) {
      const auto n = static_cast<int32_t>(std::min<int64_t>(kChunk, context - read_));
      tokens.resize(n);
      for (int32_t& token : tokens) token = NextToken();
      const std::vector<int32_t> offsets = {0, n}, slots = {0};
      model_->Step({tokens, offsets, slots, {}}, reading_.as<float>(), *stream_);
      read_ += n;
    }
    kept_[context].assign(reading_.as<char>(), reading_.as<char>() + state_bytes());
  }

  // The state after the most tokens up to `context`, in B slots of new memory. Returns the resident
  // bytes that this added, for each.
  double Place(int64_t context, int64_t B) {
    auto kept = kept_.upper_bound(context);
    SKEIN_CHECK(kept != kept_.begin());
    --kept;
    states_ = kernels::Buffer();
    const int64_t before = Resident();
    states_ = kernels::Buffer(*device_, B * state_bytes());
    for (int64_t b = 0; b < B; ++b)
      std::memcpy(states_.as<char>() + b * state_bytes(), kept->second.data(), state_bytes());
    return static_cast<double>(Resident() - before) / static_cast<double>(B);
  }

  // Seconds of one decode step of B rows, from the states that Place put there.
  double Decode(int64_t B) {
    std::vector<int32_t> tokens(B), offsets(B + 1), slots(B), wanted(B);
    std::iota(offsets.begin(), offsets.end(), 0);
    std::iota(slots.begin(), slots.end(), 0);
    std::iota(wanted.begin(), wanted.end(), 0);
    return bench::Measure(
               options_.seconds,
               [&] {
                 for (int32_t& token : tokens) token = NextToken();
                 model_->Step({tokens, offsets, slots, wanted}, states_.as<float>(), *stream_);
               })
        .median;
  }

 private:
  static constexpr int32_t kChunk = 256;

  explicit Skein(const SpeedOptions& options) : options_(options) {}

  absl::Status Load() {
    std::string error;
    device_ = kernels::NewCpuDevice({options_.threads, ""}, &error);
    if (device_ == nullptr) return absl::InvalidArgumentError(error);
    stream_ = device_->NewStream();
    bandwidth_ = bench::ReadBandwidth(*device_, *stream_, int64_t{options_.tiny ? 1 : 256} << 20);
    const char* folder = std::getenv("TMPDIR");
    const std::string path = absl::StrCat(folder != nullptr ? folder : "/tmp", "/article_bench_",
                                          getpid(), ".safetensors");
    const engine::RandomShape shape = options_.tiny ? engine::RandomShape{} : engine::kShape01B;
    SKEIN_RETURN_IF_ERROR(engine::RandomModel(shape).Write(path));
    {
      auto checkpoint = engine::Checkpoint::Open(path);
      std::remove(path.c_str());  // stays mapped
      SKEIN_RETURN_IF_ERROR(checkpoint.status());
      engine::ModelOptions load;
      load.max_tokens = kChunk;
      load.max_rows = load.max_logits =
          static_cast<int32_t>(*std::max_element(options_.batches.begin(), options_.batches.end()));
      SKEIN_ASSIGN_OR_RETURN(model_, engine::Model::Load(**checkpoint, *device_, load));
    }
    reading_ = kernels::Buffer(*device_, state_bytes());
    std::memset(reading_.data(), 0, reading_.bytes());
    return absl::OkStatus();
  }

  int32_t NextToken() { return static_cast<int32_t>(1 + drawn_++ * 7 % (config().V - 1)); }

  const SpeedOptions& options_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<engine::Model> model_;
  kernels::Buffer reading_, states_;
  std::map<int64_t, std::vector<char>> kept_;  // by tokens read
  int64_t read_ = 0, drawn_ = 0;
  double bandwidth_ = 0;
};

// Seconds of a decode step of B rows at `context` in a cache that holds random values up to there.
double DecodeSeconds(const TransformerDecoder& model, KvCache* cache, int64_t B, int64_t context,
                     double budget) {
  c10::InferenceMode inference;
  const at::Tensor tokens = at::randint(1, model.sizes().V, {B}, at::kLong);
  return bench::Measure(budget, [&] { model.Step(tokens, context - 1, cache); }).median;
}

// The transformer in the type in which it decodes faster here.
std::unique_ptr<TransformerDecoder> FasterDecoder(const TransformerSizes& sizes, double budget,
                                                  std::string* description) {
  double best = 0;
  std::unique_ptr<TransformerDecoder> faster;
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    auto model = std::make_unique<TransformerDecoder>(sizes, type);
    KvCache cache(sizes, 1, 512, type);
    const double seconds = DecodeSeconds(*model, &cache, 1, 512, budget);
    absl::StrAppendFormat(description, "%s%s %.1f ms", description->empty() ? "" : ", ",
                          type == at::kFloat ? "fp32" : "bf16", seconds * 1e3);
    if (best == 0 || seconds < best) {
      best = seconds;
      faster = std::move(model);
    }
  }
  return faster;
}

class Comparison {
 public:
  Comparison(const SpeedOptions& options, Skein& skein)
      : options_(options),
        skein_(skein),
        sizes_(TransformerSizes::Matching(
            skein.config().parameters, skein.config().L, skein.config().C, skein.config().H,
            skein.config().V,
            *std::max_element(options.contexts.begin(), options.contexts.end()))) {
    std::string trial;
    transformer_ = FasterDecoder(sizes_, options.seconds, &trial);
    const double without_positions =
        static_cast<double>(sizes_.parameters() - sizes_.context * sizes_.C);
    result_.skein =
        absl::StrFormat("%s, weights bf16, tier %s, %d threads", skein.config().ToString(),
                        skein.info().tier, skein.info().threads);
    result_.transformer = absl::StrFormat(
        "GPT-2 block, %d layers, width %d, %d heads, feed-forward %d, vocabulary %d, %.1f M "
        "parameters without positions, weights and cache %s (one step at 512: %s)",
        sizes_.L, sizes_.C, sizes_.H, sizes_.F, sizes_.V, without_positions / 1e6,
        transformer_->type() == at::kFloat ? "fp32" : "bf16", trial);
    result_.read_bytes_per_second = skein.bandwidth();
    result_.skein_floor_seconds = skein.FloorSeconds();
    result_.transformer_weight_bytes =
        (without_positions - static_cast<double>(sizes_.V * sizes_.C)) *
        static_cast<double>(c10::elementSize(transformer_->type()));
  }

  Speed Run() {
    for (const int64_t context : options_.contexts) result_.contexts.push_back(AtContext(context));
    for (const int64_t context : options_.batch_contexts)
      for (const int64_t batch : options_.batches)
        result_.batches.push_back(InBatch(context, batch));
    return std::move(result_);
  }

 private:
  // A cache of B conversations, or nothing and why.
  std::optional<KvCache> MakeCache(int64_t B, int64_t context, std::string* why) const {
    *why = WhyNoMemory(KvCache::Bytes(sizes_, B, context, transformer_->type()));
    if (!why->empty()) return std::nullopt;
    return KvCache(sizes_, B, context, transformer_->type());
  }

  ContextRow AtContext(int64_t context) {
    std::fprintf(stderr, "context %ld\n", context);
    ContextRow row;
    row.context = context;
    row.simulated = context > options_.read_tokens;
    if (!row.simulated) skein_.ReadTo(context);
    // Many conversations at once, so that pages (2 MiB where the system gives them) do not blur it.
    row.skein_bytes.value = skein_.Place(context, kMeasuredStates);
    row.skein_seconds.value = skein_.Decode(1);
    std::string why;
    const int64_t before = Resident();
    if (std::optional<KvCache> cache = MakeCache(1, context, &why)) {
      row.transformer_bytes.value = static_cast<double>(Resident() - before);
      row.transformer_seconds.value =
          DecodeSeconds(*transformer_, &*cache, 1, context, options_.seconds);
    }
    row.transformer_bytes.missing = row.transformer_seconds.missing = why;
    return row;
  }

  BatchRow InBatch(int64_t context, int64_t batch) {
    std::fprintf(stderr, "context %ld, batch %ld\n", context, batch);
    BatchRow row;
    row.context = context;
    row.batch = batch;
    skein_.Place(context, batch);
    row.skein.value = static_cast<double>(batch) / skein_.Decode(batch);
    if (std::optional<KvCache> cache = MakeCache(batch, context, &row.transformer.missing)) {
      row.transformer.value =
          static_cast<double>(batch) /
          DecodeSeconds(*transformer_, &*cache, batch, context, options_.seconds);
    }
    return row;
  }

  static constexpr int64_t kMeasuredStates = 64;

  const SpeedOptions& options_;
  Skein& skein_;
  const TransformerSizes sizes_;
  std::unique_ptr<TransformerDecoder> transformer_;
  Speed result_;
};

}  // namespace

absl::StatusOr<Speed> CompareSpeed(const SpeedOptions& options) {
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<Skein> skein, Skein::Create(options));
  return Comparison(options, *skein).Run();
}

}  // namespace skein::article
