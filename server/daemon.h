#pragma once
// The whole daemon as one object: metrics, conversations, models, gRPC. Made by main() and by the
// serving benchmark.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/config.h"
#include "server/config_loader.h"
#include "server/config_reload.h"
#include "server/grpc_server.h"
#include "server/http_server.h"
#include "server/lifecycle.h"
#include "server/live_config.h"
#include "server/load_progress.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/model_manager.h"
#include "server/model_registry.h"
#include "server/request_log.h"

namespace skein::server {

class Daemon {
 public:
  // Reads the configuration again; empty: it never changes.
  using Reread = std::function<absl::StatusOr<LoadedConfig>()>;

  // Listens and loads; serves when it returns. Who calls before is told UNAVAILABLE, LOADING.
  // Errors are for the operator: they name the file, key or port. `progress`: of loading, may be
  // empty.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const LoadedConfig& config, Reread reread,
                                                       ProgressFunction progress);
  // Ends what still runs.
  ~Daemon();

  // For good: NOT_SERVING, refuse new requests, let running ones end until `deadline`, then end
  // them at a token boundary. Blocks until nothing runs. A second call with an earlier deadline,
  // from another thread, shortens the first.
  void Drain(absl::Time deadline);
  // After Drain: sends what is still to be sent, closes the port.
  void Shutdown(absl::Time deadline);
  // Once a second, from one thread: health follows the engines' heartbeats; what has expired goes,
  // and now and then the memory that is free.
  void Maintain();
  // No engine has stalled.
  bool alive() const { return lifecycle_.state() != Lifecycle::kStalled; }
  // Puts a changed configuration in force, as far as it can change (config_reload.h); logs what was
  // done. An error: nothing has changed. Thread-safe.
  absl::StatusOr<ReloadPlan> Reload();
  std::shared_ptr<const ServerConfig> config() const { return config_.Get(); }

  // Of the default model, for benchmarks: there is one as long as nobody unloads it.
  engine::Engine& engine() { return *models_->Find("")->engine; }
  const std::string& address() const { return grpc_->address(); }
  std::string device_name() const;  // "cpu/avx2, 2 threads"
  // The one line at start: model, device, slots, bytes per conversation, ports.
  void LogReady() const;

 private:
  Daemon(const LoadedConfig& config, Reread reread);
  absl::Status ListenHttp();
  absl::Status Listen();
  void LogPorts(LogLine* line) const;
  void ShowHealth();
  absl::StatusOr<ReloadPlan> TryReload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reload_mu_);
  void DrainInstances(absl::Time deadline);

  // Constant after Start, and with their own synchronisation. In the order of construction: each
  // needs those before it.
  LiveConfig config_;
  const Reread reread_;
  Metrics metrics_;
  engine::ConversationStore conversations_;
  RequestLog requests_;
  std::unique_ptr<ModelRegistry> models_;
  Lifecycle lifecycle_;
  std::unique_ptr<ModelManager> manager_;
  Authenticator auth_;
  ConnectionTable connections_;
  ServiceContext services_;
  std::unique_ptr<HttpServer> http_;  // null: none
  std::unique_ptr<GrpcServer> grpc_;

  absl::Time give_back_ = absl::InfinitePast();  // free memory; of Maintain

  absl::Mutex scrape_mu_;  // one at a time, so that many scrapers take one processor at most
  absl::Mutex reload_mu_;  // one at a time
  absl::Mutex health_mu_;
  Lifecycle::State shown_ ABSL_GUARDED_BY(health_mu_) = Lifecycle::kLoading;
};

}  // namespace skein::server
