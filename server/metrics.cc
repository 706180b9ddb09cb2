#include "server/metrics.h"

#include <utility>
#include <vector>

#include "prometheus/text_serializer.h"
#include "server/version.h"

namespace skein::server {
namespace {

// A family that is counted in one place and read in another must appear once.
void Merge(prometheus::MetricFamily family, std::vector<prometheus::MetricFamily>* all) {
  for (prometheus::MetricFamily& known : *all) {
    if (known.name != family.name) continue;
    known.metric.insert(known.metric.end(), family.metric.begin(), family.metric.end());
    return;
  }
  all->push_back(std::move(family));
}

}  // namespace

Metrics::Metrics(const MetricsConfig& config, const std::string& config_sha256)
    : registry_(std::make_shared<prometheus::Registry>()),
      families_(std::make_unique<MetricFamilies>(*registry_, config.latency_buckets)),
      engine_collector_(std::make_shared<EngineGaugeCollector>()),
      process_collector_(std::make_shared<ProcessMetricsCollector>()) {
  families_->build_info.Add({{"version", kVersion}}).Set(1);
  ConfigReloaded(true, config_sha256);
}

Metrics::~Metrics() = default;

std::unique_ptr<ModelMetrics> Metrics::AddModel(const ModelLabels& labels) {
  return std::make_unique<ModelMetrics>(families_.get(), engine_collector_.get(), labels);
}

std::string Metrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  for (auto& family : engine_collector_->Collect()) Merge(std::move(family), &families);
  for (auto& family : process_collector_->Collect()) Merge(std::move(family), &families);
  return prometheus::TextSerializer().Serialize(families);
}

void Metrics::CallStarted(const char* service, const char* method) {
  live_calls_.fetch_add(1);
  families_->grpc_started.Add({{"grpc_service", service}, {"grpc_method", method}}).Increment();
}

void Metrics::CallHandled(const char* service, const char* method, const char* code,
                          absl::Duration time) {
  live_calls_.fetch_sub(1);
  families_->grpc_handled
      .Add({{"grpc_service", service}, {"grpc_method", method}, {"grpc_code", code}})
      .Increment();
  families_->grpc_seconds
      .Add({{"grpc_service", service}, {"grpc_method", method}}, families_->latency_buckets)
      .Observe(absl::ToDoubleSeconds(time));
}

void Metrics::Rejected(const std::string& reason, const std::string& model) {
  prometheus::Labels labels = {{"reason", reason}};
  if (!model.empty()) labels["model"] = model;
  families_->rejections.Add(labels).Increment();
}

void Metrics::AuthFailed(const std::string& reason) {
  families_->auth_failures.Add({{"reason", reason}}).Increment();
}

void Metrics::ConfigReloaded(bool successful, const std::string& config_sha256) {
  families_->reload_successful.Add({}).Set(successful ? 1 : 0);
  if (!successful) return;
  absl::MutexLock lock(&mu_);
  prometheus::Gauge* info = &families_->config_info.Add({{"sha256", config_sha256}});
  info->Set(1);
  if (config_info_ != nullptr && config_info_ != info) families_->config_info.Remove(config_info_);
  config_info_ = info;
}

void Metrics::SetConnections(int64_t open) {
  families_->connections.Add({}).Set(static_cast<double>(open));
}

void Metrics::ConnectionsRefused(const char* reason, int64_t more) {
  families_->connections_refused.Add({{"reason", reason}}).Increment(static_cast<double>(more));
}

void Metrics::SetCertificateExpiry(absl::Time expiry) {
  families_->certificate_expiry.Add({}).Set(absl::ToDoubleSeconds(expiry - absl::UnixEpoch()));
}

}  // namespace skein::server
