#pragma once
// Metrics that are read when somebody scrapes: the engine's gauges and the process. Thread-safe.

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "prometheus/collectable.h"

namespace skein::server {

class EngineGaugeCollector : public prometheus::Collectable {
 public:
  explicit EngineGaugeCollector(std::string model) : model_(std::move(model)) {}
  // nullptr: nothing is reported until the next Attach.
  void Attach(engine::Engine* engine, int64_t state_bytes);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string model_;
  mutable absl::Mutex mu_;
  engine::Engine* engine_ ABSL_GUARDED_BY(mu_) = nullptr;
  int64_t state_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

class ProcessMetricsCollector : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace skein::server
