#include "server/prompt_computer.h"

#include <memory>
#include <utility>

#include "engine/base/check.h"
#include "server/log.h"

namespace skein::server {
namespace {

// After a drain, which refuses these requests too, or a failure.
constexpr absl::Duration kTryAgain = absl::Seconds(1);

}  // namespace

absl::Status ComputePrompts(ServedInstance* instance, const std::function<bool()>& wanted) {
  for (const PromptStates::Ref& declared : instance->prompts.NotComputed()) {
    const absl::Time began = absl::Now();
    SKEIN_ASSIGN_OR_RETURN(PromptStates::Ref computed,
                           instance->engine->Compute(*declared, wanted));
    instance->prompts.SetComputed(declared, std::move(computed));
    LogLine(LogLevel::kInfo, "prompt state computed")
        .With("name", declared->name)
        .With("model", instance->name())
        .With("tokens", static_cast<int64_t>(declared->tokens.size()))
        .With("seconds", absl::ToDoubleSeconds(absl::Now() - began));
  }
  return absl::OkStatus();
}

PromptComputer::PromptComputer(const ModelRegistry& models)
    : models_(models), thread_([this] { Run(); }) {}

PromptComputer::~PromptComputer() {
  Stop();
  thread_.join();
}

void PromptComputer::Wake() {
  absl::MutexLock lock(&mu_);
  wanted_ = true;
}

void PromptComputer::Stop() {
  absl::MutexLock lock(&mu_);
  stop_ = true;
}

bool PromptComputer::stopped() const {
  absl::MutexLock lock(&mu_);
  return stop_;
}

void PromptComputer::Run() {
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(
          +[](PromptComputer* self)
               ABSL_EXCLUSIVE_LOCKS_REQUIRED(self->mu_) { return self->wanted_ || self->stop_; },
          this));
      if (stop_) return;
      wanted_ = false;
    }
    if (ComputeMissing()) continue;
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&stop_), kTryAgain);
    wanted_ = true;
  }
}

bool PromptComputer::ComputeMissing() {
  bool all = true;
  for (const auto& [name, instance] : models_.Named()) {
    const absl::Status status = ComputePrompts(instance.get(), [this] { return !stopped(); });
    if (status.ok()) continue;
    all = false;
    if (stopped()) break;
    // In a drain it waits for the end of it.
    const bool draining = absl::IsUnavailable(status);
    LogLine(draining ? LogLevel::kDebug : LogLevel::kWarning,
            "a prompt state was not computed; it is tried again")
        .With("model", name)
        .With("error", std::string(status.message()));
  }
  return all;
}

}  // namespace skein::server
