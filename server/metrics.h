#pragma once
// Prometheus metrics. Our series have the prefix skein_ and a `model` label; grpc_* and process_*
// are bare. No label ever holds an id of a conversation, request or user. The engine thread
// publishes once a step. Thread-safe.

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "server/collectors.h"
#include "server/config.h"

namespace prometheus {
class Exposer;
}

namespace skein::server {

struct ModelLabels {
  std::string name, description, fingerprint, weights, tokenizer;
};

class Metrics final : public engine::EngineObserver {
 public:
  Metrics(const MetricsConfig& config, const ModelLabels& model, const std::string& config_sha256);
  ~Metrics() override;

  // Gauges are read from `engine` at each scrape, until Detach. `state_bytes`: of one device slot.
  void Attach(engine::Engine* engine, int64_t state_bytes);
  void Detach();
  // Listens on "address:port"; returns where ("address:port" with the real port).
  absl::StatusOr<std::string> Expose(const std::string& address);

  // Engine thread and output shards.
  void OnStep(const engine::StepReport& report) override;
  void OnRequestDone(const engine::RequestReport& report) override;

  // gRPC threads. The names are those of the API, never text from a client.
  void CallStarted(const char* service, const char* method);
  void CallHandled(const char* service, const char* method, const char* code, absl::Duration time);
  void Rejected(const std::string& reason);
  // Started and not handled yet.
  int64_t live_calls() const { return live_calls_.load(); }

  // Text format of a scrape, for tests.
  std::string Scrape() const;

 private:
  struct Series;

  const std::string model_;
  const std::vector<double> buckets_;
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<Series> series_;
  const std::shared_ptr<EngineGaugeCollector> engine_collector_;
  const std::shared_ptr<ProcessMetricsCollector> process_collector_;
  std::unique_ptr<prometheus::Exposer> exposer_;
  std::atomic<int64_t> live_calls_{0};
};

}  // namespace skein::server
