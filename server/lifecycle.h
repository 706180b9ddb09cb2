#pragma once
// Whether the server takes requests, and why not: it drains, stops, has no model, or an engine has
// stalled. Thread-safe.

#include <atomic>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/model_registry.h"

namespace skein::server {

class Lifecycle {
 public:
  enum State { kReady, kLoading, kNoModel, kStalled, kDraining, kStopping };
  // "ready", "loading", "no model", ...
  static const char* Name(State state);

  // `models` outlives it. Loading until Loaded.
  explicit Lifecycle(ModelRegistry* models) : models_(*models) {}

  void Loaded();
  State state() const;

  // Every engine, later ones included, refuses new requests; what runs after `deadline` is ended.
  // `show` is called before any of them does, when state() tells: so health turns first, and who
  // goes by it is not refused.
  void BeginDrain(absl::Time deadline, absl::FunctionRef<void()> show);
  // The same for good.
  void BeginStop(absl::Time deadline, absl::FunctionRef<void()> show);
  // FAILED_PRECONDITION once it stops.
  absl::Status Undrain();

  // Puts a model in place, draining if the server does. False: the name is taken and not to be
  // replaced; *instance is kept.
  bool Serve(std::unique_ptr<ServedInstance>* instance, bool replace);

 private:
  void Drain(State state, absl::Time deadline, absl::FunctionRef<void()> show);

  ModelRegistry& models_;
  absl::Mutex change_mu_;  // one change at a time; taken before mu_
  mutable absl::Mutex mu_;
  bool loaded_ ABSL_GUARDED_BY(mu_) = false;
  State wanted_ ABSL_GUARDED_BY(mu_) = kReady;  // or kDraining or kStopping
  absl::Time deadline_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
};

}  // namespace skein::server
