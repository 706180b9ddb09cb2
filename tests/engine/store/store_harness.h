#pragma once
// A conversation store with clocks that the test moves.

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/status.h"
#include "engine/store/conversation_store.h"
#include "gtest/gtest.h"

namespace skein::engine {

inline constexpr ModelTag kTag{3, 1};
inline constexpr int64_t kFloats = 100;  // 464 bytes a snapshot

inline std::shared_ptr<const StateSnapshot> State(int64_t consumed, uint64_t model = 3) {
  auto snapshot = std::make_shared<StateSnapshot>();
  snapshot->model_fingerprint = model;
  snapshot->consumed = consumed;
  snapshot->state.assign(kFloats, static_cast<float>(consumed));
  return snapshot;
}

struct StoreHarness : ::testing::Test {
  StoreHarness() {
    options.wall_now = [this] { return absl::FromUnixSeconds(1000000000) + passed; };
    options.steady_now = [this] { return absl::UnixEpoch() + passed; };
  }
  void Make() { store = std::make_unique<ConversationStore>(options); }
  void Pass(absl::Duration time) { passed += time; }

  LeaseRequest Want(const std::string& id, const std::string& tenant = "") const {
    return {.key = {tenant, id}, .model = kTag, .create_if_missing = true, .quotas = quotas};
  }
  // One input token, one output token that the state has not consumed.
  absl::StatusOr<int64_t> Turn(const LeaseRequest& wanted, int32_t inputs = 1) {
    auto lease = store->Acquire(wanted);
    if (!lease.ok()) return lease.status();
    const auto version =
        store->Commit(*lease, std::vector<int32_t>(inputs, 7), {8},
                      State(lease->tokens + inputs, wanted.model.fingerprint), "stop", "request");
    if (!version.ok()) store->Release(*lease, "request", "RESOURCE_EXHAUSTED");
    return version;
  }
  absl::StatusOr<int64_t> Turn(const std::string& id, const std::string& tenant = "") {
    return Turn(Want(id, tenant));
  }
  std::string Reason(const absl::Status& status) const { return base::Reason(status); }
  // What the ErrorInfo's metadata will say.
  std::string Metadata(const absl::Status& status, absl::string_view key) const {
    const auto value = status.GetPayload(absl::StrCat(base::kMetadataPrefix, key));
    return value.has_value() ? std::string(*value) : "";
  }
  std::vector<std::string> Ids(const ListQuery& query) const {
    std::vector<std::string> ids;
    for (const ConversationInfo& info : store->List(query)) ids.push_back(info.id);
    return ids;
  }

  absl::Duration passed;
  ConversationStoreOptions options;
  Quotas quotas;
  std::unique_ptr<ConversationStore> store;
};

}  // namespace skein::engine
