#pragma once
// The whole daemon as one object: metrics, conversations, models, gRPC. Made by main() and by the
// serving benchmark.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/live_config.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/request_log.h"

namespace skein::server {

class Daemon {
 public:
  // Loads and listens; serves when it returns. `effective_config` is hashed into config_info.
  // Errors are for the operator: they name the file, key or port. `progress`: of loading, may be
  // empty.
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const ServerConfig& config,
                                                       const std::string& effective_config,
                                                       std::function<void(double)> progress);
  // Ends what still runs.
  ~Daemon();

  // NOT_SERVING, refuse new requests, let running ones end until `deadline`, then end them at a
  // token boundary. Blocks until nothing runs. A second call with an earlier deadline, from another
  // thread, shortens the first.
  void Drain(absl::Time deadline);
  // After Drain: sends what is still to be sent, closes the port.
  void Shutdown(absl::Time deadline);
  // Once a second: health follows the engine's heartbeat until Drain.
  void CheckHealth();

  // Of the default model, for benchmarks: there is one as long as nobody unloads it.
  engine::Engine& engine() { return *models_->Find("")->engine; }
  const std::string& address() const { return grpc_->address(); }
  std::string device_name() const;  // "cpu/avx2, 2 threads"
  // The one line at start: model, device, slots, bytes per conversation, ports.
  void LogReady() const;

 private:
  explicit Daemon(const ServerConfig& config) : config_(config) {}
  absl::Status Load(std::function<void(double)> progress);
  absl::Status Listen();
  void DrainInstances(absl::Time deadline);

  // Constant after Start, and with their own synchronisation. In the order of construction: each
  // needs those before it.
  LiveConfig config_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<engine::ConversationStore> conversations_;
  std::unique_ptr<RequestLog> requests_;
  std::unique_ptr<ModelRegistry> models_;
  Authenticator auth_;
  ServiceContext services_;
  std::unique_ptr<GrpcServer> grpc_;
  std::string metrics_address_;

  std::atomic<bool> draining_{false};
  absl::Mutex health_mu_;
  bool serving_ ABSL_GUARDED_BY(health_mu_) = false;
};

}  // namespace skein::server
