#include "server/daemon.h"

#include <openssl/sha.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "server/log.h"
#include "server/security_config.h"
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

}  // namespace

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const ServerConfig& config,
                                                      const std::string& effective_config,
                                                      std::function<void(double)> progress) {
  std::unique_ptr<Daemon> daemon(new Daemon(config));
  daemon->metrics_ = std::make_unique<Metrics>(config.metrics, Sha256(effective_config));
  daemon->conversations_ = std::make_unique<engine::ConversationStore>(config.ToStoreOptions());
  daemon->requests_ = std::make_unique<RequestLog>(config.ToRequestLogOptions());
  daemon->models_ = std::make_unique<ModelRegistry>();
  SKEIN_RETURN_IF_ERROR(daemon->Load(std::move(progress)));
  SKEIN_RETURN_IF_ERROR(daemon->Listen());
  daemon->CheckHealth();
  return daemon;
}

absl::Status Daemon::Load(std::function<void(double)> progress) {
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  SKEIN_ASSIGN_OR_RETURN(
      std::unique_ptr<ServedInstance> instance,
      LoadInstance(config->model, {*config, *conversations_, *metrics_}, std::move(progress)));
  const std::string name = instance->name();
  models_->Add(name, &instance, /*replace=*/false);
  return absl::OkStatus();
}

absl::Status Daemon::Listen() {
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  services_.config = &config_;
  services_.models = models_.get();
  services_.conversations = conversations_.get();
  services_.requests = requests_.get();
  services_.metrics = metrics_.get();
  services_.auth = &auth_;
  SKEIN_RETURN_IF_ERROR(Configure(config->auth, &auth_));
  SKEIN_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(services_));
  if (!config->listen.metrics.empty()) {
    SKEIN_ASSIGN_OR_RETURN(metrics_address_, metrics_->Expose(config->listen.metrics));
  }
  return absl::OkStatus();
}

void Daemon::LogReady() const {
  const std::shared_ptr<ServedInstance> instance = models_->Find("");
  const kernels::DeviceInfo& device = instance->device->info();
  const v1::Model& model = instance->description;
  LogLine(LogLevel::kInfo, "ready")
      .With("version", kVersion)
      .With("model", model.name())
      .With("description", model.description())
      .With("weights", model.weights())
      .With("device", absl::StrCat(device.name, "/", device.tier))
      .With("threads", device.threads)
      .With("slots", instance->engine->gauges().slots)
      .With("bytes_per_conversation", base::FormatBytes(model.state_bytes()))
      .With("grpc", address())
      .With("metrics", metrics_address_.empty()
                           ? "none"
                           : absl::StrCat("http://", metrics_address_, "/metrics"));
}

std::string Daemon::device_name() const {
  const std::shared_ptr<ServedInstance> instance = models_->Find("");
  const kernels::DeviceInfo& device = instance->device->info();
  return absl::StrCat(device.name, "/", device.tier, ", ", device.threads, " threads");
}

void Daemon::CheckHealth() {
  requests_->Expire();
  grpc_->Maintain();
  bool healthy = models_->Find("") != nullptr;
  for (const auto& instance : models_->All()) healthy = healthy && instance->engine->healthy();
  absl::MutexLock lock(&health_mu_);
  const bool serving = !draining_.load() && healthy;
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
  DrainInstances(deadline);
}

void Daemon::DrainInstances(absl::Time deadline) {
  std::vector<std::thread> drains;
  for (const auto& instance : models_->All()) {
    drains.emplace_back([instance, deadline] { instance->engine->Drain(deadline); });
  }
  for (std::thread& drain : drains) drain.join();
}

void Daemon::Shutdown(absl::Time deadline) {
  grpc_->EndWatches();
  while (metrics_->live_calls() > 0 && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(5));
  // Every answer is with the transport; connections that are still open do not count.
  grpc_->Shutdown(std::min(deadline, absl::Now() + kFlush));
}

Daemon::~Daemon() {
  if (grpc_ != nullptr) grpc_->Shutdown(absl::Now());
  // Before the services: an event that is still on its way refers to them.
  if (models_ != nullptr) DrainInstances(absl::InfinitePast());
  models_.reset();
}

}  // namespace skein::server
