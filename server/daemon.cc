#include "server/daemon.h"

#include <openssl/sha.h>

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/units.h"
#include "server/free_memory.h"
#include "server/log.h"
#include "server/security_config.h"
#include "server/version.h"

namespace skein::server {
namespace {

// For the last bytes of answers to leave.
constexpr absl::Duration kFlush = absl::Milliseconds(500);
constexpr absl::Duration kGiveBack = absl::Seconds(30);

std::string Sha256(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace

Daemon::Daemon(const LoadedConfig& config, Reread reread)
    : config_(config.config),
      reread_(std::move(reread)),
      metrics_(config.config.metrics, Sha256(config.text)),
      conversations_(config.config.ToStoreOptions()),
      requests_(config.config.ToRequestLogOptions()),
      models_(std::make_unique<ModelRegistry>()),
      lifecycle_(models_.get()),
      manager_(
          std::make_unique<ModelManager>(config_, conversations_, metrics_, *models_, lifecycle_)),
      connections_(LimitsOf(config.config)) {}

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const LoadedConfig& config, Reread reread,
                                                      ProgressFunction progress) {
  std::unique_ptr<Daemon> daemon(new Daemon(config, std::move(reread)));
  // First, so that probes and clients are answered while the models load.
  SKEIN_RETURN_IF_ERROR(daemon->ListenHttp());
  std::vector<ModelSource> models = {config.config.model};
  models.insert(models.end(), config.config.models.begin(), config.config.models.end());
  daemon->manager_->Announce(models);
  SKEIN_RETURN_IF_ERROR(daemon->Listen());
  SKEIN_RETURN_IF_ERROR(daemon->manager_->LoadAnnounced(models, progress));
  daemon->lifecycle_.Loaded();
  daemon->Maintain();
  return daemon;
}

absl::Status Daemon::ListenHttp() {
  const std::string address = config_.Get()->listen.metrics;
  if (address.empty()) return absl::OkStatus();
  const std::string text = HttpAnswer().type;
  HttpServer::Handlers handlers;
  handlers["/metrics"] = [this] {
    absl::MutexLock lock(&scrape_mu_);
    return HttpAnswer{200, "text/plain; version=0.0.4; charset=utf-8", metrics_.Scrape()};
  };
  // Alive: restarting would not help a server that loads or drains, it does help one that hangs.
  handlers["/healthz"] = [this, text] {
    return alive() ? HttpAnswer{200, text, "ok\n"} : HttpAnswer{503, text, "stalled\n"};
  };
  // Ready: whether to send requests here.
  handlers["/readyz"] = [this, text] {
    const Lifecycle::State state = lifecycle_.state();
    return HttpAnswer{state == Lifecycle::kReady ? 200 : 503, text,
                      absl::StrCat(Lifecycle::Name(state), "\n")};
  };
  SKEIN_ASSIGN_OR_RETURN(http_, HttpServer::Start("listen.metrics", address, std::move(handlers)));
  return absl::OkStatus();
}

absl::Status Daemon::Listen() {
  services_.config = &config_;
  services_.models = models_.get();
  services_.conversations = &conversations_;
  services_.requests = &requests_;
  services_.metrics = &metrics_;
  services_.auth = &auth_;
  services_.connections = &connections_;
  services_.lifecycle = &lifecycle_;
  services_.manager = manager_.get();
  services_.reload = [this] { return Reload(); };
  services_.health_changed = [this] { ShowHealth(); };
  SKEIN_RETURN_IF_ERROR(Configure(config_.Get()->auth, &auth_));
  SKEIN_ASSIGN_OR_RETURN(grpc_, GrpcServer::Start(services_));
  LogLine line(LogLevel::kInfo, "listening");
  LogPorts(&line);
  return absl::OkStatus();
}

void Daemon::LogPorts(LogLine* line) const {
  line->With("grpc", address())
      .With("metrics",
            http_ == nullptr ? "none" : absl::StrCat("http://", http_->address(), "/metrics"));
  const std::string control = grpc_->control_address();
  if (!control.empty()) line->With("control", control);
}

void Daemon::LogReady() const {
  const std::shared_ptr<ServedInstance> instance = models_->Find("");
  const kernels::DeviceInfo& device = instance->device->info();
  const v1::Model& model = instance->description;
  LogLine line(LogLevel::kInfo, "ready");
  line.With("version", kVersion)
      .With("model", model.name())
      .With("description", model.description())
      .With("weights", model.weights())
      .With("device", absl::StrCat(device.name, "/", device.tier))
      .With("threads", device.threads)
      .With("slots", instance->engine->gauges().slots)
      .With("bytes_per_conversation", base::FormatBytes(model.state_bytes()));
  LogPorts(&line);
}

std::string Daemon::device_name() const {
  const std::shared_ptr<ServedInstance> instance = models_->Find("");
  const kernels::DeviceInfo& device = instance->device->info();
  return absl::StrCat(device.name, "/", device.tier, ", ", device.threads, " threads");
}

void Daemon::Maintain() {
  requests_.Expire();
  conversations_.Expire();
  grpc_->Maintain();
  ShowHealth();
  if (const absl::Time now = absl::Now(); now >= give_back_) {
    give_back_ = now + kGiveBack;
    GiveBackFreeMemory();
  }
}

void Daemon::ShowHealth() {
  absl::MutexLock lock(&health_mu_);
  const Lifecycle::State state = lifecycle_.state();
  if (state == shown_) return;
  const bool was_stalled = shown_ == Lifecycle::kStalled;
  shown_ = state;
  grpc_->SetServing(state == Lifecycle::kReady);
  if (state == Lifecycle::kStalled) {
    LogLine(LogLevel::kError, "an engine has stalled: health is NOT_SERVING");
  } else if (was_stalled) {
    LogLine(LogLevel::kInfo, "the engines step again").With("state", Lifecycle::Name(state));
  }
}

absl::StatusOr<ReloadPlan> Daemon::Reload() {
  absl::MutexLock lock(&reload_mu_);
  absl::StatusOr<ReloadPlan> plan = TryReload();
  if (!plan.ok()) {
    metrics_.ConfigReloaded(false, "");
    LogLine(LogLevel::kError, "the configuration was not reloaded, nothing has changed")
        .With("error", std::string(plan.status().message()));
    return base::MakeStatus(absl::StatusCode::kInvalidArgument, "CONFIG_INVALID",
                            plan.status().message());
  }
  LogLine(LogLevel::kInfo, "configuration reloaded")
      .With("applied", absl::StrJoin(plan->applied, ","))
      .With("ignored", absl::StrJoin(plan->ignored, ","));
  if (!plan->ignored.empty()) {
    LogLine(LogLevel::kWarning, "some changed keys take a restart")
        .With("keys", absl::StrJoin(plan->ignored, ","));
  }
  return plan;
}

absl::StatusOr<ReloadPlan> Daemon::TryReload() {
  if (!reread_) return absl::FailedPreconditionError("this server's configuration never changes");
  SKEIN_ASSIGN_OR_RETURN(const LoadedConfig loaded, reread_());
  ReloadPlan plan = PlanReload(*config_.Get(), loaded.config);
  // A file that is fine for a restart may not be together with what stays until then: it may do
  // without tokens at another address.
  if (const absl::Status status = Validate(plan.config); !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("with what takes a restart as it is: ", status.message()));
  }
  // What can fail comes first; each keeps what it has when it fails.
  SKEIN_RETURN_IF_ERROR(manager_->Reconfigure(plan.config, [&] {
    SKEIN_RETURN_IF_ERROR(grpc_->ReplaceCertificates(plan.config.listen.tls));
    return Configure(plan.config.auth, &auth_);
  }));
  SetLogLevel(plan.config.log);
  conversations_.SetLimits(plan.config.ToStoreOptions());
  ServerConfig present = plan.config;
  metrics_.ConfigReloaded(true, Sha256(MakeSchema(&present).Print()));
  return plan;
}

void Daemon::Drain(absl::Time deadline) {
  lifecycle_.BeginStop(deadline, [this] { ShowHealth(); });
  manager_->Stop();
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
  while (metrics_.live_calls() > 0 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  // Every answer is with the transport; connections that are still open do not count.
  grpc_->Shutdown(std::min(deadline, absl::Now() + kFlush));
}

Daemon::~Daemon() {
  http_.reset();
  manager_->Stop();
  if (grpc_ != nullptr) grpc_->Shutdown(absl::Now());
  manager_.reset();
  // Before the services: an event that is still on its way refers to them.
  lifecycle_.BeginStop(absl::InfinitePast(), [] {});
  DrainInstances(absl::InfinitePast());
  models_.reset();
}

}  // namespace skein::server
