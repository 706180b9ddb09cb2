#pragma once
// Computes the prompt states that a reloaded configuration declares, on a thread of its own, while
// requests for them are served already. Thread-safe.

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/model_registry.h"

namespace skein::server {

class PromptComputer {
 public:
  explicit PromptComputer(const ModelRegistry& models);  // which outlives it
  ~PromptComputer();

  void Wake();  // there may be something to compute
  void Stop();  // what is being computed ends soon

 private:
  void Run();
  bool ComputeMissing();  // false: some could not be
  bool stopped() const;

  const ModelRegistry& models_;
  mutable absl::Mutex mu_;
  bool wanted_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses all of the above
};

// Computes what the instance has declared and not computed. An error ends it.
absl::Status ComputePrompts(ServedInstance* instance, const std::function<bool()>& wanted);

}  // namespace skein::server
