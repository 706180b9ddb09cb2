#include "server/lifecycle.h"

#include <algorithm>

#include "server/status.h"

namespace skein::server {

const char* Lifecycle::Name(State state) {
  switch (state) {
    case kReady:
      return "ready";
    case kLoading:
      return "loading";
    case kNoModel:
      return "no model";
    case kStalled:
      return "stalled";
    case kDraining:
      return "draining";
    case kStopping:
      return "stopping";
  }
  return "unknown";
}

void Lifecycle::Loaded() {
  absl::MutexLock lock(&mu_);
  loaded_ = true;
}

Lifecycle::State Lifecycle::state() const {
  {
    absl::MutexLock lock(&mu_);
    if (wanted_ != kReady) return wanted_;
    if (!loaded_) return kLoading;
  }
  if (models_.Find("") == nullptr) return kNoModel;
  for (const auto& instance : models_.All()) {
    if (!instance->engine->healthy()) return kStalled;
  }
  return kReady;
}

void Lifecycle::Drain(State state, absl::Time deadline, absl::FunctionRef<void()> show) {
  absl::MutexLock change(&change_mu_);
  {
    absl::MutexLock lock(&mu_);
    wanted_ = std::max(wanted_, state);
    deadline_ = std::min(deadline_, deadline);
  }
  show();
  absl::MutexLock lock(&mu_);
  for (const auto& instance : models_.All()) instance->engine->BeginDrain(deadline_);
}

void Lifecycle::BeginDrain(absl::Time deadline, absl::FunctionRef<void()> show) {
  Drain(kDraining, deadline, show);
}

void Lifecycle::BeginStop(absl::Time deadline, absl::FunctionRef<void()> show) {
  Drain(kStopping, deadline, show);
}

absl::Status Lifecycle::Undrain() {
  absl::MutexLock change(&change_mu_);
  absl::MutexLock lock(&mu_);
  if (wanted_ == kStopping) {
    return Precondition("STOPPING", "server", "the server has been told to end");
  }
  if (wanted_ == kDraining) wanted_ = kReady;
  deadline_ = absl::InfiniteFuture();
  for (const auto& instance : models_.All()) instance->engine->Undrain();
  return absl::OkStatus();
}

bool Lifecycle::Serve(std::unique_ptr<ServedInstance>* instance, bool replace) {
  absl::MutexLock lock(&mu_);
  // Before anybody can find it.
  if (wanted_ == kDraining || wanted_ == kStopping) (*instance)->engine->BeginDrain(deadline_);
  const std::string name = (*instance)->name();
  return models_.Add(name, instance, replace);
}

}  // namespace skein::server
