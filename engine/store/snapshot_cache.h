#pragma once
// The state snapshots in host memory: shared by the versions that hold them, counted once, evicted
// least recently used first when over the budget, or over an account's own limit. Not thread-safe:
// the conversation store's mutex covers it.

#include <cstdint>
#include <limits>
#include <list>
#include <memory>
#include <vector>

#include "engine/store/types.h"

namespace skein::engine {

class SnapshotCache {
 public:
  struct Cell;
  // The snapshots of one tenant. Outlives them.
  struct Account {
    std::list<Cell*> by_use;  // least recently used first
    int64_t bytes = 0;
  };
  // What a version holds. `snapshot` turns null when it is evicted.
  struct Cell {
    std::shared_ptr<const StateSnapshot> snapshot;
    int32_t holders = 0;
    Account* account = nullptr;
    std::list<Cell*>::iterator place;      // in the order of use of all, while there is a snapshot
    std::list<Cell*>::iterator own_place;  // in the account's
  };
  // Versions share a cell, and the cache refers to it by plain pointer while it has a snapshot.
  using CellRef = std::shared_ptr<Cell>;
  // Snapshots that left; the caller frees them outside of its lock.
  using Garbage = std::vector<std::shared_ptr<const StateSnapshot>>;

  explicit SnapshotCache(int64_t budget_bytes) : budget_bytes_(budget_bytes) {}

  // A cell held once; the most recently used.
  CellRef Add(std::shared_ptr<const StateSnapshot> snapshot, Account* account, Garbage* garbage);
  CellRef Share(const CellRef& cell);
  void Drop(const CellRef& cell, Garbage* garbage);  // one holder less
  void Touch(const CellRef& cell);                   // is used now
  // Evicts an account's own snapshots until they fit.
  void Shrink(Account* account, int64_t bytes, Garbage* garbage);

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
