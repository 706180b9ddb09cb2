#pragma once
// The configuration in force. A reload swaps in a whole new one; whoever works with it takes one
// snapshot and keeps it, so that a request never sees half of a change. Thread-safe.

#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/config.h"

namespace skein::server {

class LiveConfig {
 public:
  explicit LiveConfig(ServerConfig config)
      : config_(std::make_shared<const ServerConfig>(std::move(config))) {}

  std::shared_ptr<const ServerConfig> Get() const {
    absl::MutexLock lock(&mu_);
    return config_;
  }
  void Set(ServerConfig config) {
    auto next = std::make_shared<const ServerConfig>(std::move(config));
    absl::MutexLock lock(&mu_);
    config_.swap(next);
  }

 private:
  mutable absl::Mutex mu_;
  // Shared by this and the requests that began while it was in force.
  std::shared_ptr<const ServerConfig> config_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
