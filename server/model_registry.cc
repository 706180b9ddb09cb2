#include "server/model_registry.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/status.h"

namespace skein::server {

absl::StatusOr<ModelRegistry::Ref> ModelRegistry::Resolve(absl::string_view name) const {
  if (Ref instance = Find(std::string(name)); instance != nullptr) return instance;
  if (name.empty()) {
    return base::MakeStatus(absl::StatusCode::kUnavailable, "LOADING", "no model is loaded");
  }
  std::vector<std::string> served;
  for (const auto& [other, instance] : Named()) served.push_back(other);
  return WithErrorInfo(absl::NotFoundError(absl::StrCat(
                           "model '", name, "' is not served here; ",
                           served.empty() ? "none is" : "served: ", absl::StrJoin(served, ", "))),
                       "MODEL_NOT_FOUND", {{"served", absl::StrJoin(served, ",")}});
}

std::vector<ModelRegistry::Ref> ModelRegistry::All() const {
  std::vector<Ref> all = Retired();
  for (auto& [name, instance] : Named()) all.push_back(instance);
  return all;
}

absl::Status ModelRegistry::CheckRoom() const {
  absl::Status refusal;
  for (const auto& [name, instance] : Named()) {
    absl::Status status = instance->engine->CheckOpen();
    if (status.ok()) return absl::OkStatus();
    refusal = std::move(status);
  }
  return refusal;
}

absl::Duration ModelRegistry::RetryDelay() const {
  const Ref instance = Find("");
  return instance == nullptr ? absl::Seconds(1) : instance->engine->RetryDelay();
}

}  // namespace skein::server
