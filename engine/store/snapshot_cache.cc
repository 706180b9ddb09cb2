#include "engine/store/snapshot_cache.h"

#include <utility>

namespace skein::engine {

SnapshotCache::CellRef SnapshotCache::Add(std::shared_ptr<const StateSnapshot> snapshot,
                                          Account* account, Garbage* garbage) {
  auto cell = std::make_shared<Cell>();
  cell->snapshot = std::move(snapshot);
  cell->holders = 1;
  cell->account = account;
  bytes_ += cell->snapshot->bytes();
  account->bytes += cell->snapshot->bytes();
  cell->place = by_use_.insert(by_use_.end(), cell.get());
  cell->own_place = account->by_use.insert(account->by_use.end(), cell.get());
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
  if (cell->snapshot == nullptr) return;
  by_use_.splice(by_use_.end(), by_use_, cell->place);
  std::list<Cell*>& own = cell->account->by_use;
  own.splice(own.end(), own, cell->own_place);
}

void SnapshotCache::Shrink(Account* account, int64_t bytes, Garbage* garbage) {
  while (account->bytes > bytes && !account->by_use.empty()) {
    ++evictions_;
    Remove(account->by_use.front(), garbage);
  }
}

void SnapshotCache::Remove(Cell* cell, Garbage* garbage) {
  bytes_ -= cell->snapshot->bytes();
  cell->account->bytes -= cell->snapshot->bytes();
  by_use_.erase(cell->place);
  cell->account->by_use.erase(cell->own_place);
  garbage->push_back(std::move(cell->snapshot));
  cell->snapshot = nullptr;
}

}  // namespace skein::engine
