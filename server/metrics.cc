#include "server/metrics.h"

#include <exception>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "prometheus/exposer.h"
#include "prometheus/text_serializer.h"
#include "server/collectors.h"
#include "server/version.h"

namespace skein::server {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Counter;
using prometheus::Family;
using prometheus::Histogram;
using prometheus::Labels;
using prometheus::Registry;

const std::vector<double>& CountBuckets() {
  static const auto& buckets =
      *new std::vector<double>{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};
  return buckets;
}

Family<Counter>& CounterFamily(Registry& r, const char* name, const char* help) {
  return BuildCounter().Name(name).Help(help).Register(r);
}

Histogram& OneHistogram(Registry& r, const char* name, const char* help, const Labels& labels,
                        const std::vector<double>& buckets) {
  return BuildHistogram().Name(name).Help(help).Register(r).Add(labels, buckets);
}

void Info(Registry& r, const char* name, const char* help, const Labels& labels) {
  BuildGauge().Name(name).Help(help).Register(r).Add(labels).Set(1);
}

}  // namespace

// Families and the series with fixed labels, made once; the hot path only observes.
struct Metrics::Series {
  Series(Registry& r, const Labels& model, const std::vector<double>& b)
      : requests(CounterFamily(r, "skein_requests_total", "Requests that have ended.")),
        rejections(CounterFamily(r, "skein_admission_rejections_total",
                                 "Requests refused before they were queued.")),
        restores(CounterFamily(r, "skein_state_restores_total",
                               "Requests by where their starting state came from.")),
        grpc_started(CounterFamily(r, "grpc_server_started_total", "RPCs started.")),
        grpc_handled(CounterFamily(r, "grpc_server_handled_total", "RPCs completed, by code.")),
        grpc_seconds(BuildHistogram()
                         .Name("grpc_server_handling_seconds")
                         .Help("Time of RPCs from start to end.")
                         .Register(r)),
        step_seconds(BuildHistogram()
                         .Name("skein_step_duration_seconds")
                         .Help("Time of one step of the model, by what was in it.")
                         .Register(r)),
        prompt_tokens(CounterFamily(r, "skein_prompt_tokens_total",
                                    "Input tokens of requests that have ended.")
                          .Add(model)),
        generation_tokens(
            CounterFamily(r, "skein_generation_tokens_total", "Tokens sampled.").Add(model)),
        cached_tokens(CounterFamily(r, "skein_cached_tokens_total",
                                    "Tokens whose state was reused instead of computed.")
                          .Add({{"model", model.at("model")}, {"source", "conversation"}})),
        ttft(OneHistogram(r, "skein_time_to_first_token_seconds",
                          "From arrival to the first token.", model, b)),
        itl(OneHistogram(r, "skein_inter_token_latency_seconds", "Between two tokens of a request.",
                         model, b)),
        tpot(OneHistogram(r, "skein_request_time_per_output_token_seconds",
                          "Mean time of a token after the first, one value a request.", model, b)),
        e2e(OneHistogram(r, "skein_e2e_request_latency_seconds", "From arrival to the end.", model,
                         b)),
        queue(OneHistogram(r, "skein_request_queue_time_seconds", "Waiting for a slot.", model, b)),
        prefill(OneHistogram(r, "skein_request_prefill_time_seconds", "Taking the input in.", model,
                             b)),
        decode(OneHistogram(r, "skein_request_decode_time_seconds",
                            "From the first token to the last.", model, b)),
        batch(OneHistogram(r, "skein_step_batch_size", "Requests in one step.", model,
                           CountBuckets())),
        tokens(OneHistogram(r, "skein_step_tokens", "Tokens in one step.", model, CountBuckets())),
        gap(OneHistogram(r, "skein_step_gap_seconds",
                         "Device idle between two steps although work was there.", model, b)) {
    auto step = [&](const char* phase) -> Histogram& {
      return step_seconds.Add({{"model", model.at("model")}, {"phase", phase}}, b);
    };
    step_decode = &step("decode");
    step_prefill = &step("prefill");
    step_mixed = &step("mixed");
  }

  Family<Counter>&requests, &rejections, &restores, &grpc_started, &grpc_handled;
  Family<Histogram>&grpc_seconds, &step_seconds;
  Counter &prompt_tokens, &generation_tokens, &cached_tokens;
  Histogram &ttft, &itl, &tpot, &e2e, &queue, &prefill, &decode, &batch, &tokens, &gap;
  Histogram *step_decode, *step_prefill, *step_mixed;
};

Metrics::Metrics(const MetricsConfig& config, const ModelLabels& model,
                 const std::string& config_sha256)
    : model_(model.name),
      buckets_(config.latency_buckets),
      registry_(std::make_shared<Registry>()),
      series_(std::make_unique<Series>(*registry_, Labels{{"model", model.name}}, buckets_)),
      engine_collector_(std::make_shared<EngineGaugeCollector>(model.name)),
      process_collector_(std::make_shared<ProcessMetricsCollector>()) {
  Info(*registry_, "skein_build_info", "Version of the daemon.", {{"version", kVersion}});
  Info(*registry_, "skein_model_info", "The model that is served.",
       {{"model", model.name},
        {"description", model.description},
        {"fingerprint", model.fingerprint},
        {"weights", model.weights},
        {"tokenizer", model.tokenizer}});
  Info(*registry_, "skein_config_info", "Hash of the effective configuration.",
       {{"sha256", config_sha256}});
}

Metrics::~Metrics() = default;

void Metrics::Attach(engine::Engine* engine, int64_t state_bytes) {
  engine_collector_->Attach(engine, state_bytes);
}

void Metrics::Detach() { engine_collector_->Attach(nullptr, 0); }

absl::StatusOr<std::string> Metrics::Expose(const std::string& address) {
  try {
    exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
    exposer_->RegisterCollectable(registry_);
    exposer_->RegisterCollectable(engine_collector_);
    exposer_->RegisterCollectable(process_collector_);
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat(
        "listen.metrics: cannot listen on '", address,
        "': is the port in use or the address not one of this machine? (", e.what(), ")"));
  }
  const std::vector<int> ports = exposer_->GetListeningPorts();
  const size_t colon = address.rfind(':');
  const std::string host = colon == std::string::npos ? "0.0.0.0" : address.substr(0, colon);
  return absl::StrCat(host, ":", ports.empty() ? 0 : ports[0]);
}

void Metrics::OnStep(const engine::StepReport& r) {
  Series& s = *series_;
  Histogram* step = r.prefill_rows == 0  ? s.step_decode
                    : r.decode_rows == 0 ? s.step_prefill
                                         : s.step_mixed;
  step->Observe(absl::ToDoubleSeconds(r.duration));
  s.batch.Observe(r.decode_rows + r.prefill_rows);
  s.tokens.Observe(r.tokens);
  s.gap.Observe(absl::ToDoubleSeconds(r.gap));
  if (r.generated_tokens > 0) s.generation_tokens.Increment(r.generated_tokens);
}

void Metrics::OnRequestDone(const engine::RequestReport& r) {
  Series& s = *series_;
  s.requests
      .Add({{"model", model_},
            {"finish_reason", r.finish_reason},
            {"code", r.code},
            {"kind", r.score ? "score" : "generate"}})
      .Increment();
  s.prompt_tokens.Increment(static_cast<double>(r.usage.prompt_tokens));
  s.cached_tokens.Increment(static_cast<double>(r.usage.reused_tokens));
  if (!r.restored_from.empty()) {
    s.restores.Add({{"model", model_}, {"from", r.restored_from}}).Increment();
  }
  s.e2e.Observe(absl::ToDoubleSeconds(r.total));
  s.queue.Observe(absl::ToDoubleSeconds(r.timings.queue));
  if (r.timings.prefill > absl::ZeroDuration()) {
    s.prefill.Observe(absl::ToDoubleSeconds(r.timings.prefill));
  }
  if (r.score || r.usage.completion_tokens == 0) return;
  s.ttft.Observe(absl::ToDoubleSeconds(r.timings.time_to_first_token));
  s.decode.Observe(absl::ToDoubleSeconds(r.timings.decode));
  for (absl::Duration d : r.inter_token) s.itl.Observe(absl::ToDoubleSeconds(d));
  if (r.usage.completion_tokens > 1) {
    s.tpot.Observe(absl::ToDoubleSeconds(r.timings.decode) /
                   static_cast<double>(r.usage.completion_tokens - 1));
  }
}

void Metrics::CallStarted(const char* service, const char* method) {
  live_calls_.fetch_add(1);
  series_->grpc_started.Add({{"grpc_service", service}, {"grpc_method", method}}).Increment();
}

void Metrics::CallHandled(const char* service, const char* method, const char* code,
                          absl::Duration time) {
  live_calls_.fetch_sub(1);
  series_->grpc_handled
      .Add({{"grpc_service", service}, {"grpc_method", method}, {"grpc_code", code}})
      .Increment();
  series_->grpc_seconds.Add({{"grpc_service", service}, {"grpc_method", method}}, buckets_)
      .Observe(absl::ToDoubleSeconds(time));
}

void Metrics::Rejected(const std::string& reason) {
  series_->rejections.Add({{"model", model_}, {"reason", reason}}).Increment();
}

std::string Metrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (auto& family : engine_collector_->Collect()) families.push_back(std::move(family));
  for (auto& family : process_collector_->Collect()) families.push_back(std::move(family));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace skein::server
