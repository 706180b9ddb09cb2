#include "server/served_instance.h"

#include <map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/checkpoint.h"
#include "engine/models/packed_file.h"
#include "nlohmann/json.hpp"
#include "server/log.h"
#include "server/prompt_computer.h"

namespace skein::server {
namespace {

// What loading may take beside the weights: a tenth of them, and a little.
constexpr int64_t kLoadShare = 10;
constexpr int64_t kLoadBytes = int64_t{64} << 20;

using Metadata = std::map<std::string, std::string>;

// auto: what the file holds; fp16 fits into fp32 only.
engine::DType WeightsFor(const std::string& choice, const engine::Checkpoint& checkpoint) {
  if (choice == "bf16") return engine::DType::kBF16;
  if (choice == "fp32") return engine::DType::kF32;
  if (choice == "int8") return engine::DType::kI8;
  if (choice == "int8a8") return engine::DType::kI8A8;
  const engine::TensorView* embedding = checkpoint.Find("emb.weight");
  const bool bf16 = embedding != nullptr && embedding->dtype == engine::DType::kBF16;
  return bf16 ? engine::DType::kBF16 : engine::DType::kF32;
}

const char* Name(engine::DType type) {
  if (type == engine::DType::kI8) return "int8";
  if (type == engine::DType::kI8A8) return "int8a8";
  return type == engine::DType::kBF16 ? "bf16" : "fp32";
}

std::string Meta(const Metadata& metadata, const char* key) {
  const auto it = metadata.find(key);
  return it == metadata.end() ? std::string() : it->second;
}

std::vector<std::string> JsonStrings(const std::string& text) {
  const auto list = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> out;
  if (!list.is_array()) return out;
  for (const auto& item : list) {
    if (item.is_string()) out.push_back(item.get<std::string>());
  }
  return out;
}

int64_t StateBytes(const engine::ModelConfig& config) {
  return config.state_floats() * static_cast<int64_t>(sizeof(float));
}

v1::Model Describe(const ServedInstance& instance, const Metadata& metadata, engine::DType weights,
                   uint64_t fingerprint) {
  const engine::ModelConfig& m = instance.model->config();
  v1::Model out;
  out.set_name(instance.name());
  out.set_description(m.ToString());
  out.set_rwkv_version("7");
  out.set_layers(m.L);
  out.set_width(m.C);
  out.set_heads(m.H);
  out.set_head_size(m.N);
  out.set_vocabulary(m.V);
  out.set_parameters(m.parameters);
  out.set_weights(Name(weights));
  out.set_state_bytes(StateBytes(m));
  out.set_tokenizer(instance.tokenizer->kind());
  out.set_chat_template(instance.chat->name());
  for (const std::string& stop : instance.chat->stops()) out.add_chat_stops(stop);
  int64_t context = 0;
  if (absl::SimpleAtoi(Meta(metadata, engine::kMetaContext), &context))
    out.set_training_context(context);
  out.set_about(ToUtf8(Meta(metadata, engine::kMetaDescription)));
  for (const std::string& example : JsonStrings(Meta(metadata, engine::kMetaExamples))) {
    out.add_examples(example);
  }
  out.set_fingerprint(absl::StrCat(absl::Hex(fingerprint, absl::kZeroPad16)));
  return out;
}

// What became of the packed file; nothing where none was wanted.
void LogPacked(const engine::PackedFile& packed, const engine::Model& model) {
  if (packed.read().has_value() && packed.read()->ok()) {
    LogLine(LogLevel::kInfo, "the packed weights were read").With("path", packed.path());
  } else if (packed.read().has_value() && !absl::IsNotFound(*packed.read())) {
    // Weights that were trained on are routine, damage is not.
    const bool routine = absl::IsFailedPrecondition(*packed.read());
    LogLine(routine ? LogLevel::kInfo : LogLevel::kWarning,
            "the file of packed weights was not used: they were packed anew")
        .With("path", packed.path())
        .With("reason", packed.read()->message());
  }
  if (!packed.written().has_value()) return;
  if (packed.written()->ok()) {
    LogLine(LogLevel::kInfo, "the packed weights are kept for the next start")
        .With("path", packed.path())
        .With("bytes", base::FormatBytes(model.weight_bytes()));
  } else {
    LogLine(LogLevel::kWarning, "the packed weights could not be kept; serving goes on")
        .With("path", packed.path())
        .With("reason", packed.written()->message());
  }
}

void LogChunkedWkv(const kernels::Device& device) {
  if (device.ops().wkv7_chunked != nullptr) return;
  LogLine(LogLevel::kWarning,
          "cpu.chunked_wkv changes nothing here: it needs the instruction set amx")
      .With("tier", device.info().tier);
}

absl::Status Prefix(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

// Of 8-bit ones the embedding and the low-rank matrices are bf16, and the others have a scale for
// each 64 values.
int64_t EstimateWeights(const engine::ModelConfig& model, engine::DType type) {
  if (type == engine::DType::kF32) return 4 * model.parameters;
  if (type == engine::DType::kBF16) return 2 * model.parameters;
  const int64_t ranks = model.rank_w + model.rank_a + model.rank_v + model.rank_g;
  const int64_t wide = int64_t{model.C} * (model.V + 2 * model.L * ranks);
  return 2 * wide + (model.parameters - wide) * 17 / 16;
}

}  // namespace

int64_t ServedInstance::bytes() const {
  const int64_t states = engine->gauges().slots + std::ssize(prompts.all());
  return model->weight_bytes() + states * description.state_bytes();
}

v1::Model ServedInstance::Describe() const {
  v1::Model out = description;
  for (const auto& [name, state] : prompts.all()) {
    v1::PromptState* shown = out.add_prompt_states();
    shown->set_name(name);
    shown->set_tokens(std::ssize(state->tokens));
  }
  return out;
}

ServedInstance::~ServedInstance() {
  if (metrics != nullptr) metrics->Detach();
}

absl::StatusOr<int64_t> EstimateBytes(const ModelSource& source, const ServerConfig& config) {
  SKEIN_ASSIGN_OR_RETURN(const auto checkpoint, engine::Checkpoint::Open(source.path));
  const absl::StatusOr<engine::ModelConfig> model = checkpoint->Config();
  if (!model.ok()) return Prefix(model.status(), absl::StrCat(source.path, ": "));
  const engine::EngineOptions options = config.ToEngineOptions();
  const int64_t weights = EstimateWeights(*model, WeightsFor(source.weights, *checkpoint));
  const int64_t floats_of_a_slot = model->state_floats() + model->V;  // and its logits
  const int64_t floats_of_a_token = 32 * int64_t{model->C} + model->F;
  return weights + weights / kLoadShare + kLoadBytes +
         4 * (options.slots * floats_of_a_slot + options.max_step_tokens * floats_of_a_token +
              std::ssize(config.prompts) * model->state_floats());
}

absl::StatusOr<std::unique_ptr<ServedInstance>> LoadInstance(const ModelSource& source,
                                                             const InstanceParts& parts,
                                                             ProgressFunction progress,
                                                             std::function<bool()> wanted) {
  const ServerConfig& config = parts.config;
  auto out = std::make_unique<ServedInstance>();
  out->path = source.path;
  std::string error;
  out->device = kernels::NewCpuDevice(
      {static_cast<int>(config.cpu.threads), config.cpu.tier, config.cpu.pin}, &error);
  if (out->device == nullptr) return absl::InvalidArgumentError(absl::StrCat("cpu: ", error));

  SKEIN_ASSIGN_OR_RETURN(const auto checkpoint, engine::Checkpoint::Open(source.path));
  SKEIN_ASSIGN_OR_RETURN(out->tokenizer, engine::TokenizerFor(*checkpoint, source.vocabulary));
  SKEIN_ASSIGN_OR_RETURN(engine::ChatTemplate chat, engine::ChatTemplate::For(*checkpoint));
  out->chat = std::make_unique<engine::ChatTemplate>(std::move(chat));

  const engine::EngineOptions engine_options = config.ToEngineOptions();
  engine::ModelOptions options;
  options.weights = WeightsFor(source.weights, *checkpoint);
  options.max_tokens = engine_options.max_step_tokens;
  options.max_rows = engine_options.slots;
  options.max_logits = engine_options.slots;
  options.progress = std::move(progress);
  options.wanted = wanted;
  engine::PackedFile packed(
      *checkpoint,
      engine::PackedFile::PathFor(source.path, out->device->info().tier, options.weights));
  if (config.cpu.keep_packed) options.packed = &packed;
  options.chunked_wkv = config.cpu.chunked_wkv;
  if (options.chunked_wkv) LogChunkedWkv(*out->device);
  auto model = engine::Model::Load(*checkpoint, *out->device, options);
  if (!model.ok()) return Prefix(model.status(), absl::StrCat(source.path, ": "));
  out->model = *std::move(model);
  LogPacked(packed, *out->model);

  const uint64_t fingerprint = packed.Fingerprint(out->device->info().threads);
  out->served = {source.Name(), out->tokenizer.get(), out->chat.get(), out->model->config().V};
  out->description = Describe(*out, checkpoint->metadata(), options.weights, fingerprint);
  const v1::Model& d = out->description;
  out->metrics = parts.metrics.AddModel(
      {d.name(), d.description(), d.fingerprint(), d.weights(), d.tokenizer()});
  out->meter = std::make_unique<LoadMeter>(out->metrics.get());
  SKEIN_ASSIGN_OR_RETURN(
      out->engine, engine::Engine::Create(*out->model, *out->device, *out->tokenizer, fingerprint,
                                          engine_options, parts.conversations, out->meter.get()));
  out->metrics->Attach(out->engine.get(), d.state_bytes());
  SKEIN_ASSIGN_OR_RETURN(PromptStates::Map prompts,
                         out->prompts.Declare(config.prompts, out->served, out->engine->tag()));
  out->prompts.Set(std::move(prompts));
  SKEIN_RETURN_IF_ERROR(ComputePrompts(out.get(), [&] { return !wanted || wanted(); }));
  return out;
}

}  // namespace skein::server
