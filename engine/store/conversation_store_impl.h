#pragma once
// The conversation store's own class: reserving and committing are in conversation_store.cc,
// the line for a busy conversation in wait_for_conversation.cc, what goes away in
// expire_conversations.cc, managing in manage_conversations.cc, beginnings in prompt_versions.cc.

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
#include "engine/store/tombstones.h"
#include "engine/store/waiting_lines.h"

namespace skein::engine {

// What a version and a conversation cost beside their tokens; without it empty ones would be free
// and unbounded.
inline constexpr int64_t kVersionBytes = 128;
inline constexpr int64_t kConversationBytes = 512;

// What one tenant uses. Kept for ever: tenants are those of the configuration.
struct Tenant {
  int64_t conversations = 0;
  int64_t token_bytes = 0;
  SnapshotCache::Account states;
  Tombstones tombstones;
};

inline constexpr int64_t kLastTokens = 16;  // enough to see a template's separator at the end

// Of an empty conversation, or of none: what the prompt state brings.
void BeginWith(std::shared_ptr<const PromptState> prompt, bool want_all_tokens, Lease* lease);

// Messages show the id alone: the client knows its tenant.
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
      : options_(options), cache_(options.budget_bytes), lines_(options.max_waiting) {}

  absl::StatusOr<Lease> Acquire(const LeaseRequest& request);
  absl::StatusOr<std::vector<Lease>> AcquireCopies(const LeaseRequest& request, int32_t n);
  absl::StatusOr<Lease> Peek(const LeaseRequest& request);
  absl::StatusOr<int64_t> Commit(const Lease& lease, std::vector<int32_t> input,
                                 std::vector<int32_t> output,
                                 std::shared_ptr<const StateSnapshot> snapshot,
                                 absl::string_view finish_reason, absl::string_view request_id);
  void Release(const Lease& lease, absl::string_view request_id, absl::string_view end);
  absl::StatusOr<uint64_t> Join(LeaseRequest request, std::function<void()> wake);
  absl::StatusOr<std::optional<Lease>> Claim(uint64_t ticket);
  void Leave(uint64_t ticket);
  int64_t Ahead(uint64_t ticket) const;
  absl::StatusOr<ConversationInfo> Create(const ConversationKey& key, const NewConversation& made);
  absl::StatusOr<ConversationInfo> Get(const ConversationKey& key);
  absl::StatusOr<std::vector<VersionInfo>> History(const ConversationKey& key, int64_t after,
                                                   int32_t limit, int64_t tokens);
  std::vector<ConversationInfo> List(const ListQuery& query) const;
  absl::Status Delete(const ConversationKey& key);
  absl::StatusOr<std::vector<ConversationInfo>> Fork(const ConversationKey& key,
                                                     std::optional<int64_t> version, int32_t n,
                                                     const std::vector<std::string>& ids,
                                                     const NewConversation& made);
  absl::StatusOr<ConversationInfo> Rewind(const ConversationKey& key, int64_t version);
  void Expire();
  void SetLimits(const ConversationStoreOptions& options) {
    std::lock_guard<std::mutex> lock(mu_);
    options_.ttl = options.ttl;
    options_.history = options.history;
    options_.max_conversations = options.max_conversations;
    options_.token_budget_bytes = options.token_budget_bytes;
    options_.tombstones = options.tombstones;
  }
  ConversationStoreGauges gauges() const;

 private:
  using Map = std::map<ConversationKey, Conversation>;
  using Entry = Map::value_type;
  using Garbage = SnapshotCache::Garbage;

  // conversation_store.cc
  // The version to start from; all of a lease's refusals but that it is busy or there is no room.
  absl::StatusOr<int64_t> LeaseBase(const LeaseRequest& request, Map::iterator it) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<Lease> TakeLease(const LeaseRequest& request, Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RoomFor(const std::string& tenant, const Quotas& quotas, int64_t conversations,
                       int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckRoom(const std::string& tenant, const Quotas& quotas, int64_t conversations,
                         int64_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Entry& Insert(ConversationKey key, absl::Duration ttl) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Pay(Tenant* tenant, int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ShrinkToQuota(Tenant* tenant, const Quotas& quotas, Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<int64_t> Base(const Entry& entry, std::optional<int64_t> version) const;
  // A version of its own, parent 0. Returns its id.
  int64_t AddPrompt(const std::shared_ptr<const PromptState>& prompt, Tenant* tenant,
                    Conversation* conversation, Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What AddPrompt adds to the memory for tokens, at most.
  static int64_t PromptBytes(const std::shared_ptr<const PromptState>& prompt);
  Lease MakeLease(const Entry& entry, int64_t base, const LeaseRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void KeepStates(Conversation* conversation, Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // wait_for_conversation.cc
  // Somebody left the line, or came: unless the conversation is busy, it is the next one's.
  void LeftIdle(const ConversationKey& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // expire_conversations.cc
  // The conversation, unless it is not there or has expired.
  Map::iterator Find(const ConversationKey& key, Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // NOT_FOUND, with what is known of it.
  absl::Status Missing(const ConversationKey& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Use(Entry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);       // it is used now
  void Schedule(Entry* entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);  // its expiry, while it is idle
  void Unschedule(Conversation* conversation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool InUse(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Expired(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Removes it and leaves a tombstone.
  void Bury(Map::iterator it, Gone why, Garbage* garbage) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // manage_conversations.cc
  absl::StatusOr<std::vector<ConversationKey>> ForkKeys(const std::string& tenant, int32_t n,
                                                        const std::vector<std::string>& ids,
                                                        Garbage* garbage)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CopyUpTo(const Conversation& from, int64_t version, Tenant* payer, Conversation* to)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Matches(const Entry& entry, const ListQuery& query) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  ConversationInfo Describe(const Entry& entry) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after construction.
  ConversationStoreOptions options_;  // clocks and budget_bytes are constant; mu_ guards the rest

  mutable std::mutex mu_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mu_);  // outlive what they pay for
  Map conversations_ ABSL_GUARDED_BY(mu_);
  // What conversations that begin with the same prompt state share; it is paid for once, by nobody
  // in particular.
  struct SharedPrompt {
    std::weak_ptr<const PromptState> prompt;
    std::weak_ptr<const Turn> turn;
    std::weak_ptr<SnapshotCache::Cell> cell;
  };
  std::vector<SharedPrompt> prompts_ ABSL_GUARDED_BY(mu_);
  Tenant prompt_payer_ ABSL_GUARDED_BY(mu_);
  SnapshotCache cache_ ABSL_GUARDED_BY(mu_);
  WaitingLines lines_ ABSL_GUARDED_BY(mu_);
  ExpiryOrder expiries_ ABSL_GUARDED_BY(mu_);
  int64_t token_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t hits_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t misses_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t expired_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t deleted_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace skein::engine
