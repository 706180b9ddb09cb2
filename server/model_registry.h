#pragma once
// The models that are served, by name, and what one request takes of them. See instance_registry.h
// for how long an instance lives.

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/instance_registry.h"
#include "server/live_config.h"
#include "server/served_instance.h"

namespace skein::server {

class ModelRegistry : public InstanceRegistry<ServedInstance> {
 public:
  // UNAVAILABLE while it is being loaded, or when the default is asked for and nothing is served;
  // NOT_FOUND tells what is.
  absl::StatusOr<Ref> Resolve(absl::string_view name) const;
  // Names of the models that are being loaded, until the next call.
  void SetLoading(std::vector<std::string> names);
  // UNAVAILABLE when none is served as yet and some are being loaded: to list them makes no sense.
  absl::Status CheckList() const;
  // Those that are served and those that only finish what they have begun.
  std::vector<Ref> All() const;
  // The one that every request is for which can be served; null when there are several, or others
  // are being loaded.
  Ref Only() const;
  // How long a client that was refused should wait: by the default model's queue.
  absl::Duration RetryDelay() const;

 private:
  bool IsLoading(absl::string_view name) const;

  mutable absl::Mutex loading_mu_;
  std::vector<std::string> loading_ ABSL_GUARDED_BY(loading_mu_);
};

// A model in use by one request, and the configuration as it was when the request came. Keeps both
// alive: whoever gives a sink to the engine keeps one of these until the sink's last event.
class ModelUse {
 public:
  ModelUse(std::shared_ptr<const ServerConfig> config, std::shared_ptr<ServedInstance> instance)
      : config_(std::move(config)), instance_(std::move(instance)) {}

  const ServerConfig& config() const { return *config_; }
  const ServedInstance& instance() const { return *instance_; }
  engine::Engine& engine() const { return *instance_->engine; }
  const engine::Tokenizer& tokenizer() const { return *instance_->tokenizer; }
  Converter converter() const { return Converter(*config_, instance_->served); }

 private:
  std::shared_ptr<const ServerConfig> config_;
  std::shared_ptr<ServedInstance> instance_;  // shared with the registry and other requests
};

}  // namespace skein::server
