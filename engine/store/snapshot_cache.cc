#include "engine/store/snapshot_cache.h"

#include <utility>

namespace skein::engine {

SnapshotCache::CellRef SnapshotCache::Add(std::shared_ptr<const StateSnapshot> snapshot,
                                          Garbage* garbage) {
  auto cell = std::make_shared<Cell>();
  cell->snapshot = std::move(snapshot);
  cell->holders = 1;
  bytes_ += cell->snapshot->bytes();
  cell->place = by_use_.insert(by_use_.end(), cell.get());
  while (bytes_ > budget_bytes_) {
    ++evictions_;
    Remove(by_use_.front(), garbage);
  }
  return cell;
}

SnapshotCache::CellRef SnapshotCache::Share(const CellRef& cell) {
  ++cell->holders;
  return cell;
}

void SnapshotCache::Drop(const CellRef& cell, Garbage* garbage) {
  if (--cell->holders == 0 && cell->snapshot != nullptr) Remove(cell.get(), garbage);
}

void SnapshotCache::Touch(const CellRef& cell) {
  if (cell->snapshot != nullptr) by_use_.splice(by_use_.end(), by_use_, cell->place);
}

void SnapshotCache::Remove(Cell* cell, Garbage* garbage) {
  bytes_ -= cell->snapshot->bytes();
  by_use_.erase(cell->place);
  garbage->push_back(std::move(cell->snapshot));
  cell->snapshot = nullptr;
}

}  // namespace skein::engine
