#pragma once
// Metrics that are read when somebody scrapes: the engine's gauges and the process. Thread-safe.

#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "engine/engine.h"
#include "prometheus/collectable.h"

namespace skein::server {

// The engines that run. Those of one model name (a new instance beside one that drains) are told as
// one: counts are added up, ages are the oldest.
class EngineGaugeCollector : public prometheus::Collectable {
 public:
  struct Source {
    engine::Engine* engine = nullptr;
    std::string model;
    int64_t state_bytes = 0;  // of one device slot
  };
  // `key` tells sources apart. After Detach the engine is no longer touched.
  void Attach(const void* key, Source source);
  void Detach(const void* key);
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  mutable absl::Mutex mu_;
  std::map<const void*, Source> sources_ ABSL_GUARDED_BY(mu_);
};

class ProcessMetricsCollector : public prometheus::Collectable {
 public:
  std::vector<prometheus::MetricFamily> Collect() const override;
};

}  // namespace skein::server
