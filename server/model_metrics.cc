#include "server/model_metrics.h"

#include <algorithm>

namespace skein::server {
namespace {

using prometheus::Counter;
using prometheus::Histogram;
using prometheus::Labels;

const std::string kOtherTenants = "other";

}  // namespace

// The series with fixed labels, made once: the hot path only observes.
struct ModelMetrics::Series {
  Series(MetricFamilies& f, const std::string& model) {
    const Labels labels = {{"model", model}};
    const auto with = [&](const char* key, const char* value) {
      return Labels{{"model", model}, {key, value}};
    };
    const auto latency = [&](MetricFamilies::Histograms& family) {
      return &family.Add(labels, f.latency_buckets);
    };
    f.cached_tokens.Add(with("source", "conversation"));
    hits = &f.state_hits.Add(with("tier", "host"));
    device_hits = &f.state_hits.Add(with("tier", "device"));
    for (const engine::Miss miss :
         {engine::Miss::kEvicted, engine::Miss::kHistory, engine::Miss::kNotMade,
          engine::Miss::kModel, engine::Miss::kEmptyInput}) {
      f.state_misses.Add(with("reason", engine::MissName(miss)));
    }
    ttft = latency(f.ttft);
    itl = latency(f.itl);
    tpot = latency(f.tpot);
    e2e = latency(f.e2e);
    queue = latency(f.queue);
    prefill = latency(f.prefill);
    decode = latency(f.decode);
    gap = latency(f.step_gap);
    batch = &f.step_batch.Add(labels, f.count_buckets);
    tokens = &f.step_tokens.Add(labels, f.count_buckets);
    step_decode = &f.step_seconds.Add(with("phase", "decode"), f.latency_buckets);
    step_prefill = &f.step_seconds.Add(with("phase", "prefill"), f.latency_buckets);
    step_mixed = &f.step_seconds.Add(with("phase", "mixed"), f.latency_buckets);
    to_device = &f.transfer.Add(with("direction", "to_device"), f.latency_buckets);
    to_host = &f.transfer.Add(with("direction", "to_host"), f.latency_buckets);
    parkings = &f.state_evictions.Add({{"model", model}, {"from", "device"}, {"to", "host"}});
  }

  Counter *hits, *device_hits, *parkings;
  Histogram *ttft, *itl, *tpot, *e2e, *queue, *prefill, *decode, *gap, *batch, *tokens;
  Histogram *step_decode, *step_prefill, *step_mixed, *to_device, *to_host;
};

ModelMetrics::ModelMetrics(MetricFamilies* families, EngineGaugeCollector* gauges,
                           const ModelLabels& labels)
    : model_(labels.name),
      families_(families),
      gauges_(gauges),
      info_(&families->model_info.Add({{"model", labels.name},
                                       {"description", labels.description},
                                       {"fingerprint", labels.fingerprint},
                                       {"weights", labels.weights},
                                       {"tokenizer", labels.tokenizer}})),
      series_(std::make_unique<Series>(*families, labels.name)) {
  info_->Increment();
  // There from the start, so that a rate sees the first tokens.
  absl::MutexLock lock(&mu_);
  TenantOf("");
}

// The label is bounded: the tenants that come later share one value. Without authentication there
// is one tenant and no label.
ModelMetrics::Tenant& ModelMetrics::TenantOf(const std::string& tenant) {
  constexpr size_t kMostTenants = 100;
  const auto found = tenants_.find(tenant);
  if (found != tenants_.end()) return found->second;
  const bool room = tenants_.size() < kMostTenants;
  const std::string& shown = room ? tenant : kOtherTenants;
  Labels labels = {{"model", model_}};
  if (!shown.empty()) labels["tenant"] = shown;
  return tenants_
      .insert_or_assign(shown, Tenant{&families_->prompt_tokens.Add(labels),
                                      &families_->generation_tokens.Add(labels)})
      .first->second;
}

ModelMetrics::~ModelMetrics() {
  Detach();
  // The same file may have been loaded again under the same name: then the series is still used.
  info_->Decrement();
  if (info_->Value() <= 0) families_->model_info.Remove(info_);
}

void ModelMetrics::Attach(engine::Engine* engine, int64_t state_bytes) {
  gauges_->Attach(this, {engine, model_, state_bytes});
}

void ModelMetrics::Detach() { gauges_->Detach(this); }

// All of a step with one lock.
void ModelMetrics::ObserveIntervals(std::span<const absl::Duration> intervals) {
  if (intervals.empty()) return;
  const std::vector<double>& bounds = families_->latency_buckets;
  interval_counts_.assign(bounds.size() + 1, 0);
  double sum = 0;
  for (const absl::Duration interval : intervals) {
    const double seconds = absl::ToDoubleSeconds(interval);
    ++interval_counts_[std::lower_bound(bounds.begin(), bounds.end(), seconds) - bounds.begin()];
    sum += seconds;
  }
  series_->itl->ObserveMultiple(interval_counts_, sum);
}

void ModelMetrics::OnStep(const engine::StepReport& r) {
  Series& s = *series_;
  Histogram* step = r.prefill_rows == 0  ? s.step_decode
                    : r.decode_rows == 0 ? s.step_prefill
                                         : s.step_mixed;
  step->Observe(absl::ToDoubleSeconds(r.duration));
  s.batch->Observe(r.decode_rows + r.prefill_rows);
  s.tokens->Observe(r.tokens);
  s.gap->Observe(absl::ToDoubleSeconds(r.gap));
  ObserveIntervals(r.inter_token);
  if (r.generated_tokens == 0) return;
  absl::MutexLock lock(&mu_);
  for (const engine::TenantTokens& entry : r.generated) {
    if (entry.tokens > 0) TenantOf(entry.tenant).generation_tokens->Increment(entry.tokens);
  }
}

void ModelMetrics::OnRequestDone(const engine::RequestReport& r) {
  Series& s = *series_;
  families_->requests
      .Add({{"model", model_},
            {"finish_reason", r.finish_reason},
            {"code", r.code},
            {"kind", r.score ? "score" : "generate"}})
      .Increment();
  {
    absl::MutexLock lock(&mu_);
    TenantOf(r.tenant).prompt_tokens->Increment(static_cast<double>(r.usage.prompt_tokens));
  }
  if (r.usage.reused_tokens > 0) {
    families_->cached_tokens.Add({{"model", model_}, {"source", r.reused_from}})
        .Increment(static_cast<double>(r.usage.reused_tokens));
  }
  if (!r.restored_from.empty()) {
    families_->state_restores.Add({{"model", model_}, {"from", r.restored_from}}).Increment();
  }
  if (r.restored_from == "host") s.hits->Increment();
  if (r.restored_from == "device") s.device_hits->Increment();
  if (!r.missed.empty()) {
    families_->state_misses.Add({{"model", model_}, {"reason", r.missed}}).Increment();
  }
  if (r.timings.restore > absl::ZeroDuration()) {
    s.to_device->Observe(absl::ToDoubleSeconds(r.timings.restore));
  }
  for (absl::Duration d : r.to_device) s.to_device->Observe(absl::ToDoubleSeconds(d));
  for (absl::Duration d : r.to_host) s.to_host->Observe(absl::ToDoubleSeconds(d));
  if (r.parkings > 0) s.parkings->Increment(r.parkings);
  s.e2e->Observe(absl::ToDoubleSeconds(r.total));
  s.queue->Observe(absl::ToDoubleSeconds(r.timings.queue));
  if (r.timings.prefill > absl::ZeroDuration()) {
    s.prefill->Observe(absl::ToDoubleSeconds(r.timings.prefill));
  }
  if (r.score || r.usage.completion_tokens == 0) return;
  s.ttft->Observe(absl::ToDoubleSeconds(r.timings.time_to_first_token));
  s.decode->Observe(absl::ToDoubleSeconds(r.timings.decode));
  if (r.usage.completion_tokens > 1) {
    s.tpot->Observe(absl::ToDoubleSeconds(r.timings.decode) /
                    static_cast<double>(r.usage.completion_tokens - 1));
  }
}

}  // namespace skein::server
