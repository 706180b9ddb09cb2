#pragma once
// The conversation store's own class: reserving and committing are in conversation_store.cc,
// managing in manage_conversations.cc.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/store/conversation.h"
#include "engine/store/conversation_store.h"
#include "engine/store/snapshot_cache.h"

namespace skein::engine {

// What a version and a conversation cost beside their tokens; without it empty ones would be free
// and unbounded.
inline constexpr int64_t kVersionBytes = 128;
inline constexpr int64_t kConversationBytes = 512;

// Messages show the id alone: the client knows its tenant.
inline absl::Status NoSuchConversation(const ConversationKey& key) {
  return base::MakeStatus(absl::StatusCode::kNotFound, "CONVERSATION_NOT_FOUND",
                          absl::StrCat("no conversation '", key.id, "'"));
}

inline absl::Status NoSuchVersion(const ConversationKey& key, int64_t version) {
  return base::MakeStatus(absl::StatusCode::kNotFound, "VERSION_NOT_FOUND",
                          absl::StrCat("conversation '", key.id, "' has no version ", version));
}

inline absl::Status Busy(const ConversationKey& key) {
  return base::MakeStatus(absl::StatusCode::kAborted, "CONVERSATION_BUSY",
                          absl::StrCat("conversation '", key.id, "' is in use by another request"));
}

class ConversationStore::Impl {
 public:
  explicit Impl(const ConversationStoreOptions& options)
      : options_(options), cache_(options.budget_bytes) {}

  absl::StatusOr<Lease> Acquire(const LeaseRequest& request);
  absl::StatusOr<Lease> Peek(const LeaseRequest& request);
  absl::StatusOr<int64_t> Commit(const Lease& lease, std::vector<int32_t> input,
                                 std::vector<int32_t> output,
                                 std::shared_ptr<const StateSnapshot> snapshot,
                                 absl::string_view finish_reason, absl::string_view request_id);
  void Release(const Lease& lease, absl::string_view request_id, absl::string_view end);
  absl::StatusOr<ConversationInfo> Create(const ConversationKey& key);
  absl::StatusOr<ConversationInfo> Get(const ConversationKey& key) const;
  absl::StatusOr<std::vector<VersionInfo>> History(const ConversationKey& key) const;
  std::vector<ConversationInfo> List(absl::string_view tenant, absl::string_view prefix,
                                     absl::string_view after, int32_t limit) const;
  absl::Status Delete(const ConversationKey& key);
  absl::StatusOr<std::vector<ConversationInfo>> Fork(const ConversationKey& key,
                                                     std::optional<int64_t> version, int32_t n,
                                                     const std::vector<std::string>& ids);
  absl::StatusOr<ConversationInfo> Rewind(const ConversationKey& key, int64_t version);
  ConversationStoreGauges gauges() const;

 private:
  using Map = std::map<ConversationKey, Conversation>;
  using Entry = Map::value_type;

  absl::Status RoomFor(int64_t conversations, int64_t bytes) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry& Insert(ConversationKey key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Remove(Map::iterator it, SnapshotCache::Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<int64_t> Base(const Entry& entry, std::optional<int64_t> version) const;
  Lease MakeLease(const Entry& entry, int64_t base, const LeaseRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void KeepNewestStates(Conversation* conversation, SnapshotCache::Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<std::vector<std::string>> ForkIds(absl::string_view tenant, int32_t n,
                                                   const std::vector<std::string>& ids) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CopyUpTo(const Conversation& from, int64_t version, Conversation* to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  static ConversationInfo Describe(const Entry& entry);

  // Constant after construction.
  const ConversationStoreOptions options_;

  mutable std::mutex mu_;
  Map conversations_ ABSL_GUARDED_BY(mu_);
  SnapshotCache cache_ ABSL_GUARDED_BY(mu_);
  int64_t token_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t misses_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace skein::engine
