#pragma once
// One conversation as the store keeps it: the tree of its versions. Not thread-safe: the store's
// mutex covers it.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/store/snapshot_cache.h"
#include "engine/store/types.h"

namespace skein::engine {

struct Tenant;

// The tokens of one committed turn; immutable, shared by the conversations that were forked after
// it. They count for the tenant that committed it until the last of those has gone.
struct Turn {
  std::vector<int32_t> input;
  std::vector<int32_t> output;
  std::string finish_reason;
  std::string prompt_state;  // it is that declared one, not a turn of a request
  uint64_t model = 0;        // fingerprint of the weights that made it
  Tenant* payer = nullptr;

  int64_t tokens() const { return static_cast<int64_t>(input.size() + output.size()); }
  int64_t bytes() const { return tokens() * static_cast<int64_t>(sizeof(int32_t)) + 128; }
  int32_t at(int64_t i) const {
    const int64_t n = static_cast<int64_t>(input.size());
    return i < n ? input[i] : output[i - n];
  }
};

struct Version {
  int64_t parent = 0;
  int64_t tokens = 0;  // of the whole conversation up to here
  absl::Time time;     // wall clock
  std::shared_ptr<const Turn> turn;
  SnapshotCache::CellRef cell;  // null: there is no state of its own, and `gone` says why
  Miss gone = Miss::kNotMade;

  bool has_state() const { return cell != nullptr && cell->snapshot != nullptr; }
};

// Conversations by the time at which they expire, while nobody uses them.
using ExpiryOrder = std::multimap<absl::Time, const ConversationKey*>;

struct Conversation {
  std::map<int64_t, Version> versions;
  int64_t head = 0;
  int64_t next_version = 1;
  uint64_t vocabulary = 0;  // that the token ids are of; meaningless while there are no versions
  bool busy = false;
  absl::Time created, used;  // wall clock
  absl::Time used_steady;    // the same moment as `used`
  absl::Duration ttl = absl::InfiniteDuration();
  std::optional<ExpiryOrder::iterator> expiry;  // set while it is idle and can expire
  std::string last_request_id, last_end;

  int64_t TokensAt(int64_t version) const { return version == 0 ? 0 : versions.at(version).tokens; }
  // Versions from the first one to this one; 0 of the empty conversation.
  int64_t Depth(int64_t version) const;
  // The conversation's tokens [from, end) at a version, from <= end.
  std::vector<int32_t> Tokens(int64_t version, int64_t from) const;
  // The cell of the nearest version, at or before this one, with a snapshot of this model that has
  // consumed at most `limit` tokens; null when there is none.
  SnapshotCache::CellRef NearestState(int64_t version, int64_t limit, uint64_t model) const;
  // Why that is not the version's own.
  Miss WhyMissed(int64_t version, uint64_t model) const;
};

}  // namespace skein::engine
