#include "server/daemon.h"

#include <openssl/sha.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "engine/checkpoint.h"
#include "nlohmann/json.hpp"
#include "server/log.h"
#include "server/version.h"

namespace skein::server {
namespace {

// For the last bytes of answers to leave.
constexpr absl::Duration kFlush = absl::Milliseconds(500);

std::string Sha256(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

// auto: what the file holds; fp16 fits into fp32 only.
engine::DType WeightsFor(const std::string& choice, const engine::Checkpoint& checkpoint) {
  if (choice == "bf16") return engine::DType::kBF16;
  if (choice == "fp32") return engine::DType::kF32;
  const engine::TensorView* embedding = checkpoint.Find("emb.weight");
  const bool bf16 = embedding != nullptr && embedding->dtype == engine::DType::kBF16;
  return bf16 ? engine::DType::kBF16 : engine::DType::kF32;
}

std::string Meta(const std::map<std::string, std::string>& metadata, const char* key) {
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

const char* Name(engine::DType type) { return type == engine::DType::kBF16 ? "bf16" : "fp32"; }

absl::Status Prefix(const absl::Status& status, const std::string& prefix) {
  return absl::Status(status.code(), absl::StrCat(prefix, status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const ServerConfig& config,
                                                      const std::string& effective_config,
                                                      std::function<void(double)> progress) {
  std::unique_ptr<Daemon> daemon(new Daemon());
  daemon->config_ = config;
  SKEIN_RETURN_IF_ERROR(daemon->Load(std::move(progress)));
  SKEIN_RETURN_IF_ERROR(daemon->Listen(effective_config));
  daemon->CheckHealth();
  return daemon;
}

absl::Status Daemon::Load(std::function<void(double)> progress) {
  std::string error;
  device_ =
      kernels::NewCpuDevice({static_cast<int>(config_.cpu.threads), config_.cpu.tier}, &error);
  if (device_ == nullptr) return absl::InvalidArgumentError(absl::StrCat("cpu: ", error));

  SKEIN_ASSIGN_OR_RETURN(const auto checkpoint, engine::Checkpoint::Open(config_.model.path));
  SKEIN_ASSIGN_OR_RETURN(tokenizer_, engine::TokenizerFor(*checkpoint, config_.model.vocabulary));
  SKEIN_ASSIGN_OR_RETURN(engine::ChatTemplate chat, engine::ChatTemplate::For(*checkpoint));
  chat_ = std::make_unique<engine::ChatTemplate>(std::move(chat));
  metadata_ = checkpoint->metadata();
  weights_ = WeightsFor(config_.model.weights, *checkpoint);

  engine::ModelOptions options;
  options.weights = weights_;
  options.max_tokens = static_cast<int32_t>(config_.engine.max_step_tokens);
  options.max_rows = static_cast<int32_t>(config_.engine.slots);
  options.max_logits = options.max_rows;
  options.progress = std::move(progress);
  absl::StatusOr<std::unique_ptr<engine::Model>> model =
      engine::Model::Load(*checkpoint, *device_, options);
  if (!model.ok()) return Prefix(model.status(), absl::StrCat(config_.model.path, ": "));
  model_ = *std::move(model);
  fingerprint_ = checkpoint->Fingerprint();
  served_ = {config_.ModelName(), tokenizer_.get(), chat_.get(), model_->config().V};
  converter_ = std::make_unique<Converter>(config_, served_);
  return absl::OkStatus();
}

absl::Status Daemon::Listen(const std::string& effective_config) {
  const engine::ModelConfig& m = model_->config();
  metrics_ =
      std::make_unique<Metrics>(config_.metrics,
                                ModelLabels{served_.name, m.ToString(),
                                            absl::StrCat(absl::Hex(fingerprint_, absl::kZeroPad16)),
                                            Name(weights_), tokenizer_->kind()},
                                Sha256(effective_config));
  SKEIN_ASSIGN_OR_RETURN(engine_,
                         engine::Engine::Create(*model_, *device_, *tokenizer_, fingerprint_,
                                                config_.ToEngineOptions(), metrics_.get()));
  metrics_->Attach(engine_.get(), m.state_floats() * static_cast<int64_t>(sizeof(float)));
  services_ = {&config_, &served_, converter_.get(), engine_.get(), metrics_.get()};
  SKEIN_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(services_, device_->info(), Describe()));
  if (!config_.listen.metrics.empty()) {
    SKEIN_ASSIGN_OR_RETURN(metrics_address_, metrics_->Expose(config_.listen.metrics));
  }
  return absl::OkStatus();
}

v1::Model Daemon::Describe() const {
  const engine::ModelConfig& m = model_->config();
  v1::Model out;
  out.set_name(served_.name);
  out.set_description(m.ToString());
  out.set_rwkv_version("7");
  out.set_layers(m.L);
  out.set_width(m.C);
  out.set_heads(m.H);
  out.set_head_size(m.N);
  out.set_vocabulary(m.V);
  out.set_parameters(m.parameters);
  out.set_weights(Name(weights_));
  out.set_state_bytes(m.state_floats() * static_cast<int64_t>(sizeof(float)));
  out.set_tokenizer(tokenizer_->kind());
  out.set_chat_template(chat_->name());
  for (const std::string& stop : chat_->stops()) out.add_chat_stops(stop);
  int64_t context = 0;
  if (absl::SimpleAtoi(Meta(metadata_, engine::kMetaContext), &context))
    out.set_training_context(context);
  out.set_about(ToUtf8(Meta(metadata_, engine::kMetaDescription)));
  for (const std::string& example : JsonStrings(Meta(metadata_, engine::kMetaExamples))) {
    out.add_examples(example);
  }
  out.set_fingerprint(absl::StrCat(absl::Hex(fingerprint_, absl::kZeroPad16)));
  return out;
}

void Daemon::LogReady() const {
  const kernels::DeviceInfo& device = device_->info();
  const int64_t state = model_->config().state_floats() * static_cast<int64_t>(sizeof(float));
  LogLine(LogLevel::kInfo, "ready")
      .With("version", kVersion)
      .With("model", served_.name)
      .With("description", model_->config().ToString())
      .With("weights", Name(weights_))
      .With("device", absl::StrCat(device.name, "/", device.tier))
      .With("threads", device.threads)
      .With("slots", config_.engine.slots)
      .With("bytes_per_conversation", base::FormatBytes(state))
      .With("grpc", address())
      .With("metrics", metrics_address_.empty()
                           ? "none"
                           : absl::StrCat("http://", metrics_address_, "/metrics"));
}

std::string Daemon::device_name() const {
  const kernels::DeviceInfo& device = device_->info();
  return absl::StrCat(device.name, "/", device.tier, ", ", device.threads, " threads");
}

void Daemon::CheckHealth() {
  absl::MutexLock lock(&health_mu_);
  const bool serving = !draining_.load() && engine_->healthy();
  if (serving == serving_) return;
  serving_ = serving;
  grpc_->SetServing(serving);
  if (!serving && !draining_.load()) {
    LogLine(LogLevel::kError, "the engine has stalled: health is NOT_SERVING");
  }
}

void Daemon::Drain(absl::Time deadline) {
  {
    absl::MutexLock lock(&health_mu_);
    draining_.store(true);
    grpc_->SetServing(false);
  }
  engine_->Drain(deadline);
}

void Daemon::Shutdown(absl::Time deadline) {
  while (metrics_->live_calls() > 0 && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(5));
  // Every answer is with the transport; connections that are still open do not count.
  grpc_->Shutdown(std::min(deadline, absl::Now() + kFlush));
}

Daemon::~Daemon() {
  if (metrics_ != nullptr) metrics_->Detach();
  if (grpc_ != nullptr) grpc_->Shutdown(absl::Now());
  // Before the services: an event that is still on its way refers to them.
  engine_.reset();
}

}  // namespace skein::server
