#pragma once
// Every family that is counted as things happen: name, help and buckets in one table. Those that
// are read at a scrape are in collectors.cc. Thread-safe; constant after construction.

#include <string>
#include <vector>

#include "prometheus/counter.h"
#include "prometheus/family.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace skein::server {

struct MetricFamilies {
  using Counters = prometheus::Family<prometheus::Counter>;
  using Gauges = prometheus::Family<prometheus::Gauge>;
  using Histograms = prometheus::Family<prometheus::Histogram>;

  MetricFamilies(prometheus::Registry& registry, std::vector<double> latency_buckets);

  const std::vector<double> latency_buckets;  // seconds
  const std::vector<double> count_buckets;    // requests, tokens

  // Labels: model, and what is named here.
  Gauges& model_info;       // description, fingerprint, weights, tokenizer
  Counters& requests;       // finish_reason, code, kind
  Counters& rejections;     // reason; without model when none was chosen yet
  Counters& prompt_tokens;  // tenant (see TenantLabels)
  Counters& generation_tokens;
  Counters& cached_tokens;    // source
  Counters& state_restores;   // from
  Counters& state_hits;       // tier
  Counters& state_misses;     // reason
  Counters& state_evictions;  // from, to: of the device; other tiers are in collectors.cc
  Histograms& transfer;       // direction
  Histograms& ttft;
  Histograms& itl;
  Histograms& tpot;
  Histograms& e2e;
  Histograms& queue;
  Histograms& prefill;
  Histograms& decode;
  Histograms& step_seconds;  // phase
  Histograms& step_batch;
  Histograms& step_tokens;
  Histograms& step_gap;

  // Of the daemon, without model.
  Counters& grpc_started;    // grpc_service, grpc_method
  Counters& grpc_handled;    // and grpc_code
  Histograms& grpc_seconds;  // grpc_service, grpc_method
  Counters& auth_failures;   // reason
  Gauges& build_info;        // version
  Gauges& config_info;       // sha256
  Gauges& reload_successful;
  Gauges& certificate_expiry;
  Gauges& connections;
  Counters& connections_refused;  // reason
};

}  // namespace skein::server
