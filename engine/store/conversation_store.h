#pragma once
// Conversations: a tree of immutable versions with one head each, their token ids, and state
// snapshots in host memory under a byte budget. Thread-safe. Tiers behind it (disk, shared) join
// through StateTier.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/store/types.h"

namespace skein::engine {

// Where snapshots can live below host memory; disk and shared stores implement it later.
// Thread-safe.
class StateTier {
 public:
  virtual ~StateTier() = default;
  virtual absl::string_view name() const = 0;
  virtual absl::Status Put(const ConversationKey& key, int64_t version,
                           const StateSnapshot& snapshot) = 0;
  virtual absl::StatusOr<std::shared_ptr<const StateSnapshot>> Get(const ConversationKey& key,
                                                                   int64_t version) = 0;
  virtual absl::Status Erase(const ConversationKey& key) = 0;
};

// Shared by all engines of the daemon and outlives them: a conversation survives its model.
//
// NOT_FOUND of a conversation that went carries metadata: `reason` EXPIRED, DELETED or
// NOT_COMMITTED, `last_seen` and `gone` (RFC 3339). RESOURCE_EXHAUSTED has reason TENANT_QUOTA when
// it is the tenant's limit, CONVERSATION_LIMIT or CONVERSATION_MEMORY when it is the server's.
class ConversationStore {
 public:
  explicit ConversationStore(const ConversationStoreOptions& options);
  ~ConversationStore();

  // Reserves a conversation for one writer. NOT_FOUND, ABORTED (busy, or others wait for it),
  // FAILED_PRECONDITION (VERSION_MISMATCH: expected_version is not the head; MODEL_MISMATCH;
  // VOCABULARY_MISMATCH), NOT_FOUND (base_version), RESOURCE_EXHAUSTED.
  absl::StatusOr<Lease> Acquire(const LeaseRequest& request);
  // For a request of several sequences: makes n copies of the conversation at the base and reserves
  // those; it stays as it was and may be busy. Unknown with create_if_missing: n empty ones. The
  // leases are alike but for their keys; only the first has `pending`. With n 0 nothing is made,
  // and the one lease reserves nothing. Else as Acquire.
  absl::StatusOr<std::vector<Lease>> AcquireCopies(const LeaseRequest& request, int32_t n);
  // Reads without reserving, for Score: neither creates nor looks at expected_version, and rebuilds
  // another model's states.
  absl::StatusOr<Lease> Peek(const LeaseRequest& request) const;
  // Adds a version whose parent is the lease's base, makes it the head, frees the reservation.
  // Returns its id. On an error (RESOURCE_EXHAUSTED: token budget) nothing has changed and the
  // lease must still be released. `snapshot` may be null: the version's state is then rebuilt from
  // an ancestor's.
  absl::StatusOr<int64_t> Commit(const Lease& lease, std::vector<int32_t> input,
                                 std::vector<int32_t> output,
                                 std::shared_ptr<const StateSnapshot> snapshot,
                                 absl::string_view finish_reason, absl::string_view request_id);
  // Ends a reservation and leaves the conversation as it was. `end`: how the request ended, for
  // Get.
  void Release(const Lease& lease, absl::string_view request_id, absl::string_view end);

  // Waiting for a busy conversation, without blocking: the place in its line is a ticket, which
  // must be given to Claim until that has an answer, or to Leave. `wake` is called by any thread
  // when Claim may have one; it must be quick and call nothing of the store. ABORTED: the line is
  // full.
  absl::StatusOr<uint64_t> Join(LeaseRequest request, std::function<void()> wake);
  // Nothing: not yet. A lease, or Acquire's error (the ticket's place is gone in both cases).
  absl::StatusOr<std::optional<Lease>> Claim(uint64_t ticket);
  void Leave(uint64_t ticket);
  int64_t Ahead(uint64_t ticket) const;  // how many wait before it

  // ALREADY_EXISTS, RESOURCE_EXHAUSTED. Empty id: one is made.
  absl::StatusOr<ConversationInfo> Create(const ConversationKey& key,
                                          const NewConversation& made = {});
  absl::StatusOr<ConversationInfo> Get(const ConversationKey& key) const;
  // By id, of all branches, those after `after`; at most `limit`, and stops once it has given
  // `tokens` token ids.
  absl::StatusOr<std::vector<VersionInfo>> History(
      const ConversationKey& key, int64_t after = 0,
      int32_t limit = std::numeric_limits<int32_t>::max(),
      int64_t tokens = std::numeric_limits<int64_t>::max()) const;
  // One tenant's that match, in order of id. Conversations that exist all the while come exactly
  // once, whatever is made or deleted meanwhile.
  std::vector<ConversationInfo> List(const ListQuery& query) const;
  absl::Status Delete(const ConversationKey& key);  // ABORTED when busy
  // Copies a conversation at a version (head when unset) into new ones; snapshots are shared, not
  // copied. `ids` empty or of size n. All or nothing.
  absl::StatusOr<std::vector<ConversationInfo>> Fork(const ConversationKey& key,
                                                     std::optional<int64_t> version, int32_t n,
                                                     const std::vector<std::string>& ids,
                                                     const NewConversation& made = {});
  // Makes a kept version the head again; 0 is the empty conversation. Other versions stay.
  absl::StatusOr<ConversationInfo> Rewind(const ConversationKey& key, int64_t version);

  // Removes the idle conversations whose ttl has passed; costs O(those). Call it now and then: who
  // asks for an expired one finds it gone in any case.
  void Expire();
  // Of the options: ttl (of conversations made from now on), history, max_conversations,
  // token_budget_bytes, tombstones. What is there already stays until it is used or replaced.
  void SetLimits(const ConversationStoreOptions& options);

  ConversationStoreGauges gauges() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace skein::engine
