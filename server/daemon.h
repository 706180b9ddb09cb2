#pragma once
// The whole daemon as one object: checkpoint -> device, model, tokenizer, template -> engine ->
// metrics, gRPC. Made by main() and by the serving benchmark.

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "engine/chat_template.h"
#include "engine/engine.h"
#include "engine/models/model.h"
#include "engine/tokenizer.h"
#include "kernels/device.h"
#include "server/config.h"
#include "server/convert.h"
#include "server/grpc_server.h"
#include "server/metrics.h"

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

  engine::Engine& engine() { return *engine_; }
  const std::string& address() const { return grpc_->address(); }
  std::string device_name() const;  // "cpu/avx2, 2 threads"
  // The one line at start: model, device, slots, bytes per conversation, ports.
  void LogReady() const;

 private:
  Daemon() = default;
  absl::Status Load(std::function<void(double)> progress);
  absl::Status Listen(const std::string& effective_config);
  v1::Model Describe() const;

  // Constant after Start. In the order of construction: each needs those before it.
  ServerConfig config_;
  std::unique_ptr<kernels::Device> device_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  std::unique_ptr<engine::ChatTemplate> chat_;
  std::map<std::string, std::string> metadata_;  // of the checkpoint
  uint64_t fingerprint_ = 0;
  engine::DType weights_ = engine::DType::kBF16;
  std::unique_ptr<engine::Model> model_;
  ServedModel served_;
  std::unique_ptr<Converter> converter_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<engine::Engine> engine_;
  ServiceContext services_;
  std::unique_ptr<GrpcServer> grpc_;
  std::string metrics_address_;

  std::atomic<bool> draining_{false};
  absl::Mutex health_mu_;
  bool serving_ ABSL_GUARDED_BY(health_mu_) = false;
};

}  // namespace skein::server
