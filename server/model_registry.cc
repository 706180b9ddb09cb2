#include "server/model_registry.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/status.h"

namespace skein::server {
namespace {

absl::Status Loading(absl::string_view message) {
  return base::MakeStatus(absl::StatusCode::kUnavailable, "LOADING", message);
}

}  // namespace

void ModelRegistry::SetLoading(std::vector<std::string> names) {
  absl::MutexLock lock(&loading_mu_);
  loading_.swap(names);
}

bool ModelRegistry::IsLoading(absl::string_view name) const {
  absl::MutexLock lock(&loading_mu_);
  return name.empty() ? !loading_.empty()
                      : std::find(loading_.begin(), loading_.end(), name) != loading_.end();
}

absl::Status ModelRegistry::CheckList() const {
  const bool loading = IsLoading("");
  if (!loading || !Named().empty()) return absl::OkStatus();
  return Loading("the model is being loaded; try again later");
}

absl::StatusOr<ModelRegistry::Ref> ModelRegistry::Resolve(absl::string_view name) const {
  const bool loading = IsLoading(name);  // first: it is served before it is no longer loading
  if (Ref instance = Find(std::string(name)); instance != nullptr) return instance;
  if (loading) {
    return Loading(name.empty()
                       ? "the model is being loaded; try again later"
                       : absl::StrCat("model '", name, "' is being loaded; try again later"));
  }
  if (name.empty()) return Loading("no model is loaded");
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

ModelRegistry::Ref ModelRegistry::Only() const {
  if (IsLoading("")) return nullptr;
  const auto named = Named();
  return named.size() == 1 ? named.front().second : nullptr;
}

absl::Duration ModelRegistry::RetryDelay() const {
  const Ref instance = Find("");
  return instance == nullptr ? absl::Seconds(1) : instance->engine->RetryDelay();
}

}  // namespace skein::server
