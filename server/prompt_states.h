#pragma once
// The prompt states of one model: texts of the configuration with the state that the model has
// after them. What is declared can be used at once; until its state has been computed, requests
// take its tokens in themselves. Thread-safe.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "engine/store/types.h"
#include "server/config.h"
#include "server/convert.h"

namespace skein::server {

class PromptStates {
 public:
  using Ref = std::shared_ptr<const engine::PromptState>;  // shared with requests
  using Map = std::map<std::string, Ref>;                  // by name

  // Those of the configuration that are for this model. What has the same tokens here keeps its
  // state. INVALID_ARGUMENT names the entry: a system message for a model without a template.
  absl::StatusOr<Map> Declare(const std::vector<PromptConfig>& prompts, const ServedModel& served,
                              const engine::ModelTag& tag) const;
  void Set(Map states);
  // Takes the place of what was declared, unless that has been replaced meanwhile.
  void SetComputed(const Ref& declared, Ref computed);

  Map all() const;
  std::vector<Ref> NotComputed() const;
  // NOT_FOUND tells which there are.
  absl::StatusOr<Ref> Find(const std::string& name, const std::string& model) const;

 private:
  mutable absl::Mutex mu_;
  Map states_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
