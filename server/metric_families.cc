#include "server/metric_families.h"

#include <utility>

namespace skein::server {
namespace {

using prometheus::Registry;
using F = MetricFamilies;

F::Counters& Counter(Registry& r, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(r);
}
F::Gauges& Gauge(Registry& r, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(r);
}
F::Histograms& Histogram(Registry& r, const char* name, const char* help) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(r);
}

}  // namespace

MetricFamilies::MetricFamilies(Registry& r, std::vector<double> buckets)
    : latency_buckets(std::move(buckets)),
      count_buckets({1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096}),
      model_info(Gauge(r, "skein_model_info", "The models that are served.")),
      requests(Counter(r, "skein_requests_total", "Requests that have ended.")),
      rejections(Counter(r, "skein_admission_rejections_total",
                         "Requests refused before they were queued.")),
      prompt_tokens(
          Counter(r, "skein_prompt_tokens_total", "Input tokens of requests that have ended.")),
      generation_tokens(Counter(r, "skein_generation_tokens_total", "Tokens sampled.")),
      cached_tokens(Counter(r, "skein_cached_tokens_total",
                            "Tokens whose state was reused instead of computed.")),
      state_restores(Counter(r, "skein_state_restores_total",
                             "Requests by where their starting state came from.")),
      state_hits(Counter(r, "skein_state_cache_hits_total", "Turns that found their state.")),
      state_misses(Counter(r, "skein_state_cache_misses_total",
                           "Turns whose state was rebuilt from tokens, by why it was not there.")),
      state_evictions(Counter(r, "skein_state_evictions_total",
                              "States that left a tier to make room for others.")),
      transfer(Histogram(r, "skein_state_transfer_seconds",
                         "Copying one state between the device and host memory.")),
      ttft(Histogram(r, "skein_time_to_first_token_seconds", "From arrival to the first token.")),
      itl(Histogram(r, "skein_inter_token_latency_seconds", "Between two tokens of a request.")),
      tpot(Histogram(r, "skein_request_time_per_output_token_seconds",
                     "Mean time of a token after the first, one value a request.")),
      e2e(Histogram(r, "skein_e2e_request_latency_seconds", "From arrival to the end.")),
      queue(Histogram(r, "skein_request_queue_time_seconds", "Waiting for a slot.")),
      prefill(Histogram(r, "skein_request_prefill_time_seconds", "Taking the input in.")),
      decode(
          Histogram(r, "skein_request_decode_time_seconds", "From the first token to the last.")),
      step_seconds(Histogram(r, "skein_step_duration_seconds",
                             "Time of one step of the model, by what was in it.")),
      step_batch(Histogram(r, "skein_step_batch_size", "Requests in one step.")),
      step_tokens(Histogram(r, "skein_step_tokens", "Tokens in one step.")),
      step_gap(Histogram(r, "skein_step_gap_seconds",
                         "Device idle between two steps although work was there.")),
      grpc_started(Counter(r, "grpc_server_started_total", "RPCs started.")),
      grpc_handled(Counter(r, "grpc_server_handled_total", "RPCs completed, by code.")),
      grpc_seconds(Histogram(r, "grpc_server_handling_seconds", "Time of RPCs from start to end.")),
      auth_failures(Counter(r, "skein_auth_failures_total",
                            "RPCs refused for their credentials, by reason.")),
      build_info(Gauge(r, "skein_build_info", "Version of the daemon.")),
      config_info(Gauge(r, "skein_config_info", "Hash of the effective configuration.")),
      reload_successful(Gauge(r, "skein_config_last_reload_successful",
                              "1 when the last load of the configuration succeeded.")),
      certificate_expiry(Gauge(r, "skein_tls_certificate_expiry_seconds",
                               "When the server's certificate expires, seconds since the epoch.")),
      connections(Gauge(r, "skein_connections", "Open connections of clients.")),
      connections_refused(Counter(r, "skein_connections_refused_total",
                                  "Connections that were not kept, by reason.")) {}

}  // namespace skein::server
