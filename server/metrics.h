#pragma once
// Prometheus metrics of the daemon. Our series have the prefix skein_; grpc_* and process_* are
// bare. What belongs to a model has the label `model` (ModelMetrics). No label ever holds an id of
// a conversation, request or user. Thread-safe.

#include <atomic>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "prometheus/registry.h"
#include "server/collectors.h"
#include "server/config.h"
#include "server/metric_families.h"
#include "server/model_metrics.h"

namespace skein::server {

class Metrics {
 public:
  Metrics(const MetricsConfig& config, const std::string& config_sha256);
  ~Metrics();

  // The series of one instance of a model; lives as long as its engine.
  std::unique_ptr<ModelMetrics> AddModel(const ModelLabels& labels);
  // Text format of a scrape.
  std::string Scrape() const;

  // gRPC threads. The names are those of the API, never text from a client.
  void CallStarted(const char* service, const char* method);
  void CallHandled(const char* service, const char* method, const char* code, absl::Duration time);
  // `model`: as served; empty when the request was refused before one was chosen.
  void Rejected(const std::string& reason, const std::string& model = "");
  // Started and not handled yet.
  int64_t live_calls() const { return live_calls_.load(); }
  // A call refused for its credentials. `reason`: one of a fixed set.
  void AuthFailed(const std::string& reason);

  // A reload of the configuration; `config_sha256` counts when it succeeded.
  void ConfigReloaded(bool successful, const std::string& config_sha256);
  // Of the certificate that is served now.
  void SetCertificateExpiry(absl::Time expiry);
  void SetConnections(int64_t open);
  // `reason`: limit or descriptors.
  void ConnectionsRefused(const char* reason, int64_t more);

 private:
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<MetricFamilies> families_;
  const std::shared_ptr<EngineGaugeCollector> engine_collector_;
  const std::shared_ptr<ProcessMetricsCollector> process_collector_;
  std::atomic<int64_t> live_calls_{0};

  absl::Mutex mu_;
  prometheus::Gauge* config_info_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace skein::server
