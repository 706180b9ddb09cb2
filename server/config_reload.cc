#include "server/config_reload.h"

namespace skein::server {
namespace {

// Back to what they are: ports, models, sizes of what was allocated at start. Everything else is
// read at each use, or handed on by Daemon::Reload.
void KeepFixed(const ServerConfig& present, ServerConfig* config) {
  const ServerConfig wanted = *config;
  config->listen = present.listen;
  config->listen.tls = wanted.listen.tls;
  config->listen.tls.require_client_certificate = present.listen.tls.require_client_certificate;
  config->model = present.model;
  config->models = present.models;
  config->cpu = present.cpu;
  config->engine = present.engine;
  config->requests = present.requests;
  config->requests.record_bytes = wanted.requests.record_bytes;
  config->conversations.budget_bytes = present.conversations.budget_bytes;
  config->conversations.max_waiting = present.conversations.max_waiting;
  config->metrics = present.metrics;
  config->log.format = present.log.format;
}

}  // namespace

ReloadPlan PlanReload(const ServerConfig& present, const ServerConfig& wanted) {
  ReloadPlan plan;
  plan.config = wanted;
  KeepFixed(present, &plan.config);
  // Schemas point into what they describe, so they get copies of their own.
  ServerConfig before = present, after = wanted, taken = plan.config;
  const auto old_values = MakeSchema(&before).Values();
  const auto new_values = MakeSchema(&after).Values();
  const auto taken_values = MakeSchema(&taken).Values();
  for (size_t i = 0; i < old_values.size(); ++i) {
    if (new_values[i] == old_values[i]) continue;
    const bool applied = taken_values[i] == new_values[i];
    (applied ? plan.applied : plan.ignored).push_back(old_values[i].first);
  }
  return plan;
}

}  // namespace skein::server
