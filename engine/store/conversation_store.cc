#include "engine/store/conversation_store.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {
namespace {

using base::MakeStatus;
using Garbage = SnapshotCache::Garbage;

constexpr int64_t kLastTokens = 16;  // enough to see a template's separator at the end

}  // namespace

// ---- reading and reserving

absl::Status ConversationStore::Impl::RoomFor(int64_t conversations, int64_t bytes) const {
  if (static_cast<int64_t>(conversations_.size()) + conversations > options_.max_conversations) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "CONVERSATION_LIMIT",
                      absl::StrCat("the server keeps at most ", options_.max_conversations,
                                   " conversations; delete some first"));
  }
  if (token_bytes_ + bytes > options_.token_budget_bytes) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "CONVERSATION_MEMORY",
        absl::StrCat("the memory for conversation tokens (", options_.token_budget_bytes,
                     " bytes) is full; delete some conversations first"));
  }
  return absl::OkStatus();
}

ConversationStore::Impl::Entry& ConversationStore::Impl::Insert(ConversationKey key) {
  Entry& entry = *conversations_.try_emplace(std::move(key)).first;
  entry.second.created = entry.second.used = absl::Now();
  token_bytes_ += kConversationBytes;
  return entry;
}

absl::StatusOr<int64_t> ConversationStore::Impl::Base(const Entry& entry,
                                                      std::optional<int64_t> version) const {
  const int64_t base = version.value_or(entry.second.head);
  if (base != 0 && !entry.second.versions.contains(base)) return NoSuchVersion(entry.first, base);
  return base;
}

Lease ConversationStore::Impl::MakeLease(const Entry& entry, int64_t base,
                                         const LeaseRequest& request) {
  const Conversation& conversation = entry.second;
  Lease lease;
  lease.key = entry.first;
  lease.model_fingerprint = request.model_fingerprint;
  lease.base_version = base;
  lease.tokens = conversation.TokensAt(base);
  if (base == 0) return lease;
  const int64_t limit = request.pending == Pending::kAtLeastOne ? lease.tokens - 1 : lease.tokens;
  const SnapshotCache::CellRef cell =
      conversation.NearestState(base, limit, request.model_fingerprint);
  if (cell != nullptr) {
    cache_.Touch(cell);
    lease.snapshot = cell->snapshot;
  }
  lease.rebuilt = cell == nullptr || cell != conversation.versions.at(base).cell;
  ++(lease.rebuilt ? misses_ : hits_);
  lease.pending = conversation.Tokens(base, cell == nullptr ? 0 : cell->snapshot->consumed);
  lease.last_tokens = conversation.Tokens(base, std::max<int64_t>(0, lease.tokens - kLastTokens));
  return lease;
}

absl::StatusOr<Lease> ConversationStore::Impl::Acquire(const LeaseRequest& request) {
  const ConversationKey& key = request.key;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(key);
  const bool exists = it != conversations_.end();
  if (!exists && !request.create_if_missing) return NoSuchConversation(key);
  if (exists && it->second.busy) return Busy(key);
  const int64_t head = exists ? it->second.head : 0;
  if (request.expected_version.value_or(head) != head) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "VERSION_MISMATCH",
                      absl::StrCat("the head of conversation '", key.id, "' is version ", head,
                                   ", not ", *request.expected_version));
  }
  if (!exists && request.base_version.value_or(0) != 0) {
    return NoSuchVersion(key, *request.base_version);
  }
  SKEIN_RETURN_IF_ERROR(RoomFor(exists ? 0 : 1, kVersionBytes + (exists ? 0 : kConversationBytes)));
  Entry& entry = exists ? *it : Insert(key);
  const absl::StatusOr<int64_t> from = Base(entry, request.base_version);
  if (!from.ok()) return from.status();
  entry.second.busy = true;
  entry.second.used = absl::Now();
  Lease lease = MakeLease(entry, *from, request);
  lease.created = !exists;
  return lease;
}

absl::StatusOr<Lease> ConversationStore::Impl::Peek(const LeaseRequest& request) {
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(request.key);
  if (it == conversations_.end()) return NoSuchConversation(request.key);
  const absl::StatusOr<int64_t> from = Base(*it, request.base_version);
  if (!from.ok()) return from.status();
  it->second.used = absl::Now();
  return MakeLease(*it, *from, request);
}

// ---- ending a reservation

absl::StatusOr<int64_t> ConversationStore::Impl::Commit(
    const Lease& lease, std::vector<int32_t> input, std::vector<int32_t> output,
    std::shared_ptr<const StateSnapshot> snapshot, absl::string_view finish_reason,
    absl::string_view request_id) {
  Garbage garbage;  // freed after the lock
  auto turn = std::make_shared<Turn>();
  turn->input = std::move(input);
  turn->output = std::move(output);
  turn->finish_reason = std::string(finish_reason);
  turn->time = absl::Now();
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(lease.key);
  SKEIN_CHECK(it != conversations_.end() && it->second.busy);
  Conversation& conversation = it->second;
  SKEIN_RETURN_IF_ERROR(RoomFor(0, kVersionBytes + turn->bytes()));
  token_bytes_ += kVersionBytes + turn->bytes();

  Version version;
  version.parent = lease.base_version;
  version.tokens = lease.tokens + turn->tokens();
  version.turn = std::move(turn);
  if (snapshot != nullptr) {
    SKEIN_CHECK(snapshot->consumed <= version.tokens &&
                snapshot->model_fingerprint == lease.model_fingerprint);
    version.cell = cache_.Add(std::move(snapshot), &garbage);
  }
  const int64_t id = conversation.next_version++;
  conversation.versions.emplace(id, std::move(version));
  conversation.head = id;
  conversation.busy = false;
  conversation.used = absl::Now();
  conversation.last_request_id = std::string(request_id);
  conversation.last_end = std::string(finish_reason);
  KeepNewestStates(&conversation, &garbage);
  return id;
}

void ConversationStore::Impl::KeepNewestStates(Conversation* conversation, Garbage* garbage) {
  int32_t kept = 0;
  for (auto it = conversation->versions.rbegin(); it != conversation->versions.rend(); ++it) {
    if (it->second.cell == nullptr) continue;
    if (it->second.has_state() && ++kept <= options_.history) continue;
    cache_.Drop(it->second.cell, garbage);
    it->second.cell = nullptr;
  }
}

void ConversationStore::Impl::Release(const Lease& lease, absl::string_view request_id,
                                      absl::string_view end) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(lease.key);
  SKEIN_CHECK(it != conversations_.end() && it->second.busy);
  it->second.busy = false;
  it->second.last_request_id = std::string(request_id);
  it->second.last_end = std::string(end);
  if (lease.created) Remove(it, &garbage);
}

void ConversationStore::Impl::Remove(Map::iterator it, Garbage* garbage) {
  for (auto& [id, version] : it->second.versions) {
    if (version.cell != nullptr) cache_.Drop(version.cell, garbage);
    token_bytes_ -= kVersionBytes;
    if (version.turn.use_count() == 1) token_bytes_ -= version.turn->bytes();
    version.turn = nullptr;
  }
  token_bytes_ -= kConversationBytes;
  conversations_.erase(it);
}

// ---- the public face

ConversationStore::ConversationStore(const ConversationStoreOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}
ConversationStore::~ConversationStore() = default;

absl::StatusOr<Lease> ConversationStore::Acquire(const LeaseRequest& request) {
  return impl_->Acquire(request);
}
absl::StatusOr<Lease> ConversationStore::Peek(const LeaseRequest& request) const {
  return impl_->Peek(request);
}
absl::StatusOr<int64_t> ConversationStore::Commit(const Lease& lease, std::vector<int32_t> input,
                                                  std::vector<int32_t> output,
                                                  std::shared_ptr<const StateSnapshot> snapshot,
                                                  absl::string_view finish_reason,
                                                  absl::string_view request_id) {
  return impl_->Commit(lease, std::move(input), std::move(output), std::move(snapshot),
                       finish_reason, request_id);
}
void ConversationStore::Release(const Lease& lease, absl::string_view request_id,
                                absl::string_view end) {
  impl_->Release(lease, request_id, end);
}
absl::StatusOr<ConversationInfo> ConversationStore::Create(const ConversationKey& key) {
  return impl_->Create(key);
}
absl::StatusOr<ConversationInfo> ConversationStore::Get(const ConversationKey& key) const {
  return impl_->Get(key);
}
absl::StatusOr<std::vector<VersionInfo>> ConversationStore::History(
    const ConversationKey& key) const {
  return impl_->History(key);
}
std::vector<ConversationInfo> ConversationStore::List(absl::string_view tenant,
                                                      absl::string_view prefix,
                                                      absl::string_view after,
                                                      int32_t limit) const {
  return impl_->List(tenant, prefix, after, limit);
}
absl::Status ConversationStore::Delete(const ConversationKey& key) { return impl_->Delete(key); }
absl::StatusOr<std::vector<ConversationInfo>> ConversationStore::Fork(
    const ConversationKey& key, std::optional<int64_t> version, int32_t n,
    const std::vector<std::string>& ids) {
  return impl_->Fork(key, version, n, ids);
}
absl::StatusOr<ConversationInfo> ConversationStore::Rewind(const ConversationKey& key,
                                                           int64_t version) {
  return impl_->Rewind(key, version);
}
ConversationStoreGauges ConversationStore::gauges() const { return impl_->gauges(); }

}  // namespace skein::engine
