#pragma once
// The conversations of one tenant that went, so that NOT_FOUND can say why and when. Bounded: the
// oldest are forgotten. Not thread-safe: the store's mutex covers it.

#include <cstdint>
#include <deque>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace skein::engine {

enum class Gone {
  kExpired,       // its ttl passed
  kDeleted,       // by a client
  kNotCommitted,  // the request that created it ended without a commit
};

struct Tombstone {
  Gone why = Gone::kDeleted;
  absl::Time last_seen;  // when it was used last; wall clock, as `when`
  absl::Time when;       // it went
};

class Tombstones {
 public:
  void Add(const std::string& id, const Tombstone& stone, int64_t most) {
    order_.emplace_back(id, ++serial_);
    stones_[id] = {stone, serial_};
    while (static_cast<int64_t>(order_.size()) > most) {
      const auto it = stones_.find(order_.front().first);
      if (it != stones_.end() && it->second.serial == order_.front().second) stones_.erase(it);
      order_.pop_front();
    }
  }
  // The id lives again.
  void Remove(absl::string_view id) { stones_.erase(id); }
  // nullptr: nothing is known of it.
  const Tombstone* Find(absl::string_view id) const {
    const auto it = stones_.find(id);
    return it == stones_.end() ? nullptr : &it->second.stone;
  }
  int64_t size() const { return static_cast<int64_t>(stones_.size()); }

 private:
  struct Entry {
    Tombstone stone;
    uint64_t serial = 0;
  };
  absl::flat_hash_map<std::string, Entry> stones_;
  // By age. An id may stand here more than once; only its newest serial counts.
  std::deque<std::pair<std::string, uint64_t>> order_;
  uint64_t serial_ = 0;
};

}  // namespace skein::engine
