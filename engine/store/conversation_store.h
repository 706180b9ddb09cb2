#pragma once
// Conversations: a tree of immutable versions with one head each, their token ids, and state
// snapshots in host memory under a byte budget. Thread-safe. Tiers behind it (disk, shared) join
// through StateTier.

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace skein::engine {

// Ids of different tenants never meet; without authentication there is one tenant, "".
struct ConversationKey {
  std::string tenant, id;
  auto operator<=>(const ConversationKey&) const = default;
};

// A state that has consumed exactly the first `consumed` tokens of a conversation; immutable.
// Shared (shared_ptr) by the versions that hold it and the running requests that start from it.
struct StateSnapshot {
  uint64_t model_fingerprint = 0;
  int64_t consumed = 0;
  std::vector<float> state;  // [state_floats]
  int64_t bytes() const { return static_cast<int64_t>(state.size() * sizeof(float)) + 64; }
};

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

// One committed turn. `input` and `output` are the token ids as the model saw them; the
// conversation's text up to this version is the concatenation along the parents. The last tokens
// may not be consumed by the state yet: the snapshot says how many are.
struct VersionInfo {
  int64_t id = 0;              // from 1, growing, never reused
  int64_t parent = 0;          // 0: the empty conversation
  std::vector<int32_t> input;  // includes the separator that was written first
  std::vector<int32_t> output;
  std::string finish_reason;  // "stop", "length", ...
  absl::Time time;
  int64_t tokens = 0;      // of the whole conversation at this version
  bool has_state = false;  // a snapshot is kept (else it is rebuilt from tokens when asked for)
};

struct ConversationInfo {
  std::string id;
  int64_t head = 0;         // 0: empty
  int64_t tokens = 0;       // at the head
  int64_t state_bytes = 0;  // of its snapshots
  bool busy = false;
  absl::Time created, used;
  std::string last_request_id;  // and how it ended: "stop", "CANCELLED", ...
  std::string last_end;
};

struct ConversationStoreOptions {
  int64_t budget_bytes = int64_t{1}
                         << 30;  // snapshots in host memory; beyond it the least recently used go
  int64_t token_budget_bytes = int64_t{256}
                               << 20;  // token ids of all versions; beyond it: RESOURCE_EXHAUSTED
  int32_t history = 4;                 // newest versions of a conversation that keep a snapshot
  int32_t max_conversations = 100000;
};

struct ConversationStoreGauges {
  int64_t conversations = 0, snapshot_bytes = 0, token_bytes = 0, budget_bytes = 0;
  int64_t evictions = 0, hits = 0, misses = 0;  // since start; a miss is a rebuild from tokens
};

// What a request that holds a conversation starts from.
struct Lease {
  ConversationKey key;
  uint64_t model_fingerprint = 0;    // of the weights that go on; the snapshot is theirs
  int64_t base_version = 0;          // 0: empty
  bool created = false;              // by this lease; aborting it removes the conversation again
  std::vector<int32_t> last_tokens;  // the end of the conversation at base, for the chat template
  std::shared_ptr<const StateSnapshot>
      snapshot;                  // nearest kept one at or before base; null: from zero
  std::vector<int32_t> pending;  // tokens of the conversation from snapshot->consumed on
  int64_t tokens = 0;            // of the conversation at base
  bool rebuilt = false;          // base's own snapshot was gone: pending holds whole turns
};

// What a lease's `pending` must hold. A caller that feeds no token of its own needs one to go on
// from, even when the base's snapshot has consumed them all (the turn ended with a stop): then an
// older snapshot is taken.
enum class Pending { kAny, kAtLeastOne };

struct LeaseRequest {
  ConversationKey key;
  uint64_t model_fingerprint = 0;  // only snapshots of these weights serve it
  bool create_if_missing = false;
  std::optional<int64_t> base_version = {};      // unset: the head
  std::optional<int64_t> expected_version = {};  // fail unless the head is this one
  Pending pending = Pending::kAny;
};

// Shared by all engines of the daemon and outlives them: a conversation survives its model.
class ConversationStore {
 public:
  explicit ConversationStore(const ConversationStoreOptions& options);
  ~ConversationStore();

  // Reserves a conversation for one writer. NOT_FOUND, ABORTED (busy), FAILED_PRECONDITION
  // (expected_version is not the head), NOT_FOUND (base_version), RESOURCE_EXHAUSTED.
  absl::StatusOr<Lease> Acquire(const LeaseRequest& request);
  // Reads without reserving, for Score: neither creates nor looks at expected_version.
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

  absl::StatusOr<ConversationInfo> Create(
      const ConversationKey& key);  // empty id: one is made. ALREADY_EXISTS
  absl::StatusOr<ConversationInfo> Get(const ConversationKey& key) const;
  absl::StatusOr<std::vector<VersionInfo>> History(
      const ConversationKey& key) const;  // by id, all branches
  // One tenant's, in order of id, after `after`; at most `limit`.
  std::vector<ConversationInfo> List(absl::string_view tenant, absl::string_view prefix,
                                     absl::string_view after, int32_t limit) const;
  absl::Status Delete(const ConversationKey& key);  // ABORTED when busy
  // Copies a conversation at a version (head when unset) into new ones of the same tenant;
  // snapshots are shared, not copied. `ids` empty or of size n. All or nothing.
  absl::StatusOr<std::vector<ConversationInfo>> Fork(const ConversationKey& key,
                                                     std::optional<int64_t> version, int32_t n,
                                                     const std::vector<std::string>& ids);
  // Makes a kept version the head again; 0 is the empty conversation. Other versions stay.
  absl::StatusOr<ConversationInfo> Rewind(const ConversationKey& key, int64_t version);

  ConversationStoreGauges gauges() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace skein::engine
