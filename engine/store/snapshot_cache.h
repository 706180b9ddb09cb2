#pragma once
// The state snapshots in host memory: shared by the versions that hold them, counted once, evicted
// least recently used first when over the budget. Not thread-safe: the conversation store's mutex
// covers it.

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "engine/store/conversation_store.h"

namespace skein::engine {

class SnapshotCache {
 public:
  // What a version holds. `snapshot` turns null when it is evicted.
  struct Cell {
    std::shared_ptr<const StateSnapshot> snapshot;
    int32_t holders = 0;
    std::list<Cell*>::iterator place;  // in the order of use, while there is a snapshot
  };
  // Versions share a cell, and the cache refers to it by plain pointer while it has a snapshot.
  using CellRef = std::shared_ptr<Cell>;
  // Snapshots that left; the caller frees them outside of its lock.
  using Garbage = std::vector<std::shared_ptr<const StateSnapshot>>;

  explicit SnapshotCache(int64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  // A cell held once; the most recently used.
  CellRef Add(std::shared_ptr<const StateSnapshot> snapshot, Garbage* garbage);
  CellRef Share(const CellRef& cell);
  void Drop(const CellRef& cell, Garbage* garbage);  // one holder less
  void Touch(const CellRef& cell);                   // is used now

  int64_t bytes() const { return bytes_; }
  int64_t evictions() const { return evictions_; }

 private:
  void Remove(Cell* cell, Garbage* garbage);

  const int64_t budget_bytes_;
  std::list<Cell*> by_use_;  // least recently used first
  int64_t bytes_ = 0;
  int64_t evictions_ = 0;
};

}  // namespace skein::engine
