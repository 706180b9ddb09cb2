#pragma once
// What the conversation store is asked and what it tells: plain data.

#include <compare>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/clock.h"
#include "engine/quotas.h"

namespace skein::engine {

// Ids of different tenants never meet; without authentication there is one tenant, "".
struct ConversationKey {
  std::string tenant, id;
  auto operator<=>(const ConversationKey&) const = default;
};

// What makes or goes on with a conversation.
struct ModelTag {
  uint64_t fingerprint = 0;  // of the weights: only their own states serve them
  uint64_t vocabulary = 0;   // of the tokenizer: token ids mean the same only where it is the same
};

// What to do when the version to go on from was made by other weights.
enum class OnModelMismatch {
  kFail,     // FAILED_PRECONDITION, MODEL_MISMATCH
  kRebuild,  // from its tokens; the vocabulary must be the same
};

// A state that has consumed exactly the first `consumed` tokens of a conversation; immutable.
// Shared (shared_ptr) by the versions that hold it and the running requests that start from it.
struct StateSnapshot {
  uint64_t model_fingerprint = 0;
  int64_t consumed = 0;
  std::vector<float> state;  // [state_floats]
  int64_t bytes() const { return static_cast<int64_t>(state.size() * sizeof(float)) + 64; }
};

// A declared beginning of conversations: its tokens, and the state that was computed of them once.
// Immutable; shared by whoever declared it, the requests that start from it and their leases.
struct PromptState {
  std::string name;
  ModelTag model;
  std::vector<int32_t> tokens;  // at least one
  // Has consumed all but the last token, which there is to go on from. Null: not computed yet, or
  // there is but one token; a request then takes the tokens in itself.
  std::shared_ptr<const StateSnapshot> snapshot;

  bool computed() const { return snapshot != nullptr || tokens.size() == 1; }
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
  uint64_t model_fingerprint = 0;  // of the weights that made it
  std::string prompt_state;        // the declared one that this version is, or empty
};

struct ConversationInfo {
  std::string id;
  int64_t head = 0;         // 0: empty
  int64_t tokens = 0;       // at the head
  int64_t state_bytes = 0;  // of its snapshots
  bool busy = false;
  int64_t waiting = 0;          // requests in its line
  absl::Time created, used;     // used: when the latest request began or ended
  absl::Duration ttl;           // not used for this long: it expires; infinite: never
  std::string last_request_id;  // and how it ended: "stop", "CANCELLED", ...
  std::string last_end;
  uint64_t model_fingerprint = 0;  // of the head's weights; 0: empty
  uint64_t vocabulary = 0;         // that its token ids are of; meaningless without versions
};

struct ConversationStoreOptions {
  int64_t budget_bytes = int64_t{1}
                         << 30;  // snapshots in host memory; beyond it the least recently used go
  int64_t token_budget_bytes = int64_t{256}
                               << 20;  // token ids of all versions; beyond it: RESOURCE_EXHAUSTED
  int32_t history = 4;  // versions of a conversation that keep a snapshot: of the head's branch the
                        // last ones, then the newest others
  int32_t max_conversations = 100000;
  absl::Duration ttl = absl::InfiniteDuration();  // of conversations made without their own
  int32_t max_waiting = 16;                       // requests in the line of one conversation
  int32_t tombstones = 10000;                     // conversations that went, remembered per tenant
  // The wall clock for what is shown, the steady one for what expires. Tests set their own.
  std::function<absl::Time()> wall_now = absl::Now;
  std::function<absl::Time()> steady_now = MonotonicNow;
};

// For metrics: skein_conversations{tier="host"}, skein_state_cache_*{tier="host"},
// skein_state_evictions_total{from="host"}, skein_conversations_lost_total{reason="expired" |
// "deleted"}, skein_requests_waiting_for_conversation.
struct ConversationStoreGauges {
  int64_t conversations = 0, snapshot_bytes = 0, token_bytes = 0, budget_bytes = 0;
  int64_t evictions = 0, hits = 0, misses = 0;  // since start; a miss is a rebuild from tokens
  int64_t expired = 0, deleted = 0;             // conversations, since start
  int64_t waiting = 0;                          // requests in lines for busy conversations
  int64_t tombstones = 0;
};

// What a lease's `pending` must hold. A caller that feeds no token of its own needs one to go on
// from, even when the base's snapshot has consumed them all (the turn ended with a stop): then an
// older snapshot is taken.
enum class Pending { kAny, kAtLeastOne };

// Why a version's own state is not what a request starts from.
enum class Miss {
  kNone,
  kEvicted,     // it left: the budget, or the tenant's quota
  kHistory,     // newer versions took its place
  kNotMade,     // the turn was committed before anything of it was computed
  kModel,       // another model made it
  kEmptyInput,  // it has consumed all tokens, and without input one is needed to go on from
};
// "evicted", "history", "not_made", "model", "empty_input"; none: empty.
const char* MissName(Miss miss);

struct LeaseRequest {
  ConversationKey key;
  ModelTag model = {};
  OnModelMismatch on_model_mismatch = OnModelMismatch::kFail;
  bool create_if_missing = false;
  std::optional<int64_t> base_version = {};      // unset: the head
  std::optional<int64_t> expected_version = {};  // fail unless the head is this one
  Pending pending = Pending::kAny;
  bool want_all_tokens = false;
  // Where the conversation begins; it must be empty at the base. Of the same model.
  std::shared_ptr<const PromptState> prompt = nullptr;
  // Set at the commit. Unset: as it is; of a new conversation the store's default.
  std::optional<absl::Duration> ttl = {};
  Quotas quotas = {};  // of the tenant, held at once and at the commit
};

// What a request that holds a conversation starts from.
struct Lease {
  ConversationKey key;
  ModelTag model;
  int64_t base_version = 0;          // 0: empty
  bool created = false;              // by this lease; aborting it removes the conversation again
  std::vector<int32_t> last_tokens;  // the end of the conversation at base, for the chat template
  std::shared_ptr<const StateSnapshot>
      snapshot;                     // nearest kept one at or before base; null: from zero
  std::vector<int32_t> pending;     // tokens of the conversation from snapshot->consumed on
  int64_t tokens = 0;               // of the conversation at base
  std::vector<int32_t> all_tokens;  // those, when asked for
  Miss miss = Miss::kNone;          // else it is not base's own snapshot: pending holds whole turns
  // Stands before the turn: `tokens` and all that follows from them are its. The commit makes it a
  // version of its own. Base is 0 then.
  std::shared_ptr<const PromptState> prompt;
  std::optional<absl::Duration> ttl;
  Quotas quotas;
};

// What a request starts from that begins with a prompt state and has no conversation.
Lease StartFrom(std::shared_ptr<const PromptState> prompt, bool want_all_tokens);

// What new conversations are made with.
struct NewConversation {
  std::optional<absl::Duration> ttl = {};  // unset: the store's default; of a fork its source's
  Quotas quotas = {};
  std::optional<std::string> tenant = {};               // of forks; unset: the source's
  std::shared_ptr<const PromptState> prompt = nullptr;  // its first version; not of forks
};

struct ListQuery {
  std::string tenant = {};
  std::string prefix = {};
  std::string after = {};  // ids after this one
  int32_t limit = std::numeric_limits<int32_t>::max();
  std::optional<bool> busy = {};
  std::optional<bool> has_state = {};  // of the head
  absl::Time used_since = absl::InfinitePast();
  absl::Time used_before = absl::InfiniteFuture();
};

}  // namespace skein::engine
