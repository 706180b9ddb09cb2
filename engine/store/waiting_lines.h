#pragma once
// Requests that wait until a busy conversation is free: one line a conversation, first come, first
// served. Nobody blocks: whoever waits is told when it may try. Not thread-safe: the store's mutex
// covers it.

#include <cstdint>
#include <functional>
#include <list>
#include <map>

#include "absl/container/flat_hash_map.h"
#include "engine/store/types.h"

namespace skein::engine {

class WaitingLines {
 public:
  struct Place {
    LeaseRequest request;
    std::function<void()> wake;  // quick, calls nothing of the store
  };

  explicit WaitingLines(int32_t max_per_line) : max_per_line_(max_per_line) {}

  // 0: the line is full. Tickets are never reused.
  uint64_t Join(Place place);
  // nullptr: no such ticket.
  const Place* Find(uint64_t ticket) const;
  // Whether it is the first of its line.
  bool IsFirst(uint64_t ticket) const;
  // How many stand before it.
  int64_t Ahead(uint64_t ticket) const;
  void Leave(uint64_t ticket);
  // Tells the first of the line, if there is one, that the conversation is free.
  void WakeFirst(const ConversationKey& key) const;

  int64_t WaitingFor(const ConversationKey& key) const;
  int64_t size() const { return static_cast<int64_t>(places_.size()); }

 private:
  using Line = std::list<uint64_t>;
  const int32_t max_per_line_;
  std::map<ConversationKey, Line> lines_;  // none is empty
  absl::flat_hash_map<uint64_t, Place> places_;
  uint64_t next_ticket_ = 1;
};

}  // namespace skein::engine
