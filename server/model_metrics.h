#pragma once
// The series of one served model: what its engine reports, with the label `model`. Two instances of
// one name (a new checkpoint beside the old one that drains) count into the same series.
// Thread-safe; the engine thread publishes once a step.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "prometheus/gauge.h"
#include "server/collectors.h"
#include "server/metric_families.h"

namespace skein::server {

struct ModelLabels {
  std::string name, description, fingerprint, weights, tokenizer;
};

// Made by Metrics::AddModel, which outlives it. Outlives the engine that it observes.
class ModelMetrics final : public engine::EngineObserver {
 public:
  ModelMetrics(MetricFamilies* families, EngineGaugeCollector* gauges, const ModelLabels& labels);
  // Its info series goes, its gauges are read no more; counters stay, as counters must.
  ~ModelMetrics() override;
  ModelMetrics(const ModelMetrics&) = delete;
  ModelMetrics& operator=(const ModelMetrics&) = delete;

  // Gauges are read from `engine` at each scrape, until Detach. `state_bytes`: of one device slot.
  void Attach(engine::Engine* engine, int64_t state_bytes);
  void Detach();

  void OnStep(const engine::StepReport& report) override;
  void OnRequestDone(const engine::RequestReport& report) override;

 private:
  struct Series;
  struct Tenant {
    prometheus::Counter *prompt_tokens, *generation_tokens;
  };
  void ObserveIntervals(std::span<const absl::Duration> intervals);
  Tenant& TenantOf(const std::string& tenant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string model_;
  MetricFamilies* const families_;
  EngineGaugeCollector* const gauges_;
  prometheus::Gauge* const info_;
  const std::unique_ptr<Series> series_;
  std::vector<double> interval_counts_;  // of a step, by bucket; engine thread only

  // Uncontended: the engine thread reports.
  absl::Mutex mu_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
