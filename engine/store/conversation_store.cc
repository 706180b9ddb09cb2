#include "engine/store/conversation_store.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {
namespace {

using base::MakeStatus;

absl::Status NotEmpty(const ConversationKey& key, int64_t base) {
  return MakeStatus(
      absl::StatusCode::kFailedPrecondition, "CONVERSATION_NOT_EMPTY",
      absl::StrCat("a prompt state begins a conversation, and '", key.id, "' is at version ", base,
                   "; leave prompt_state out to go on, or set base_version 0"));
}

// Whether this model may go on from this version.
absl::Status CheckModel(const ConversationKey& key, const Conversation& conversation, int64_t base,
                        const ModelTag& model, OnModelMismatch mode) {
  if (!conversation.versions.empty() && conversation.vocabulary != model.vocabulary) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "VOCABULARY_MISMATCH",
                      absl::StrCat("the tokens of conversation '", key.id,
                                   "' are of another vocabulary than this model's"));
  }
  if (base == 0 || mode == OnModelMismatch::kRebuild) return absl::OkStatus();
  const uint64_t maker = conversation.versions.at(base).turn->model;
  if (maker == model.fingerprint) return absl::OkStatus();
  return MakeStatus(
      absl::StatusCode::kFailedPrecondition, "MODEL_MISMATCH",
      absl::StrFormat("version %d of conversation '%s' was made by another model (fingerprint "
                      "%016x, this one's is %016x); on_model_mismatch REBUILD goes on from its "
                      "tokens",
                      base, key.id, maker, model.fingerprint));
}

}  // namespace

// ---- reading and reserving

absl::Status ConversationStore::Impl::RoomFor(const std::string& tenant, const Quotas& quotas,
                                              int64_t conversations, int64_t bytes) const {
  absl::Status room = CheckRoom(tenant, quotas, conversations, bytes);
  return room.ok() ? room : base::WaitingDoesNotHelp(std::move(room));
}

absl::Status ConversationStore::Impl::CheckRoom(const std::string& tenant, const Quotas& quotas,
                                                int64_t conversations, int64_t bytes) const {
  // A limit that was lowered below what is there refuses new conversations, not those that are.
  const bool more = conversations > 0;
  if (more &&
      static_cast<int64_t>(conversations_.size()) + conversations > options_.max_conversations) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "CONVERSATION_LIMIT",
                      absl::StrCat("the server keeps at most ", options_.max_conversations,
                                   " conversations (conversations.max); delete some first"));
  }
  if (token_bytes_ + bytes > options_.token_budget_bytes) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "CONVERSATION_MEMORY",
        absl::StrCat("the memory for conversation tokens (conversations.token_budget, ",
                     options_.token_budget_bytes,
                     " bytes) is full; delete some conversations first"));
  }
  const auto it = tenants_.find(tenant);
  const int64_t has = it == tenants_.end() ? 0 : it->second.conversations;
  const int64_t uses = it == tenants_.end() ? 0 : it->second.token_bytes;
  if (more && quotas.conversations > 0 && has + conversations > quotas.conversations) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "TENANT_QUOTA",
                      absl::StrCat("your quota is ", quotas.conversations,
                                   " conversations (quotas.conversations); delete some first"));
  }
  if (quotas.bytes > 0 && uses + bytes > quotas.bytes) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "TENANT_QUOTA",
        absl::StrCat("your quota of memory for conversations (quotas.bytes, ", quotas.bytes,
                     " bytes) is used by their tokens; delete some first"));
  }
  return absl::OkStatus();
}

ConversationStore::Impl::Entry& ConversationStore::Impl::Insert(ConversationKey key,
                                                                absl::Duration ttl) {
  Tenant& tenant = tenants_[key.tenant];
  tenant.tombstones.Remove(key.id);
  ++tenant.conversations;
  Pay(&tenant, kConversationBytes);
  Entry& entry = *conversations_.try_emplace(std::move(key)).first;
  entry.second.ttl = ttl;
  entry.second.created = options_.wall_now();
  Use(&entry);
  Schedule(&entry);
  return entry;
}

void ConversationStore::Impl::Pay(Tenant* tenant, int64_t bytes) {
  tenant->token_bytes += bytes;
  token_bytes_ += bytes;
}

// Tokens come first: they cannot be made again.
void ConversationStore::Impl::ShrinkToQuota(Tenant* tenant, const Quotas& quotas,
                                            Garbage* garbage) {
  if (quotas.bytes > 0) {
    cache_.Shrink(&tenant->states, quotas.bytes - tenant->token_bytes, garbage);
  }
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
  lease.model = request.model;
  lease.ttl = request.ttl;
  lease.quotas = request.quotas;
  lease.base_version = base;
  lease.tokens = conversation.TokensAt(base);
  if (base == 0 && request.prompt != nullptr) {
    BeginWith(request.prompt, request.want_all_tokens, &lease);
  }
  if (base == 0) return lease;
  const int64_t limit = request.pending == Pending::kAtLeastOne ? lease.tokens - 1 : lease.tokens;
  const SnapshotCache::CellRef cell =
      conversation.NearestState(base, limit, request.model.fingerprint);
  if (cell != nullptr) {
    cache_.Touch(cell);
    lease.snapshot = cell->snapshot;
  }
  if (cell == nullptr || cell != conversation.versions.at(base).cell) {
    lease.miss = conversation.WhyMissed(base, request.model.fingerprint);
  }
  ++(lease.miss != Miss::kNone ? misses_ : hits_);
  lease.pending = conversation.Tokens(base, cell == nullptr ? 0 : cell->snapshot->consumed);
  lease.last_tokens = conversation.Tokens(base, std::max<int64_t>(0, lease.tokens - kLastTokens));
  if (request.want_all_tokens) lease.all_tokens = conversation.Tokens(base, 0);
  return lease;
}

absl::StatusOr<int64_t> ConversationStore::Impl::LeaseBase(const LeaseRequest& request,
                                                           Map::iterator it) const {
  const ConversationKey& key = request.key;
  const bool exists = it != conversations_.end();
  if (!exists && !request.create_if_missing) return Missing(key);
  const int64_t head = exists ? it->second.head : 0;
  if (request.expected_version.value_or(head) != head) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "VERSION_MISMATCH",
                      absl::StrCat("the head of conversation '", key.id, "' is version ", head,
                                   ", not ", *request.expected_version));
  }
  const int64_t base = request.base_version.value_or(head);
  if (!exists && base != 0) return NoSuchVersion(key, base);
  if (!exists) return 0;
  SKEIN_RETURN_IF_ERROR(Base(*it, base).status());
  if (base != 0 && request.prompt != nullptr) return NotEmpty(key, base);
  SKEIN_RETURN_IF_ERROR(
      CheckModel(key, it->second, base, request.model, request.on_model_mismatch));
  return base;
}

absl::StatusOr<Lease> ConversationStore::Impl::TakeLease(const LeaseRequest& request,
                                                         Garbage* garbage) {
  const ConversationKey& key = request.key;
  const Map::iterator it = Find(key, garbage);
  const bool exists = it != conversations_.end();
  if (exists && it->second.busy) return Busy(key);
  SKEIN_ASSIGN_OR_RETURN(const int64_t base, LeaseBase(request, it));
  SKEIN_RETURN_IF_ERROR(RoomFor(key.tenant, request.quotas, exists ? 0 : 1,
                                kVersionBytes + (exists ? 0 : kConversationBytes)));
  Entry& entry = exists ? *it : Insert(key, request.ttl.value_or(options_.ttl));
  entry.second.busy = true;
  Use(&entry);
  Unschedule(&entry.second);
  Lease lease = MakeLease(entry, base, request);
  lease.created = !exists;
  return lease;
}

absl::StatusOr<Lease> ConversationStore::Impl::Acquire(const LeaseRequest& request) {
  Garbage garbage;  // freed after the lock
  std::lock_guard<std::mutex> lock(mu_);
  if (lines_.WaitingFor(request.key) > 0) return Busy(request.key);  // nobody jumps the line
  return TakeLease(request, &garbage);
}

absl::StatusOr<Lease> ConversationStore::Impl::Peek(const LeaseRequest& request) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = Find(request.key, &garbage);
  if (it == conversations_.end()) return Missing(request.key);
  SKEIN_ASSIGN_OR_RETURN(const int64_t base, Base(*it, request.base_version));
  SKEIN_RETURN_IF_ERROR(
      CheckModel(it->first, it->second, base, request.model, OnModelMismatch::kRebuild));
  Use(&*it);
  if (!it->second.busy) Schedule(&*it);
  return MakeLease(*it, base, request);
}

// ---- ending a reservation

absl::StatusOr<int64_t> ConversationStore::Impl::Commit(
    const Lease& lease, std::vector<int32_t> input, std::vector<int32_t> output,
    std::shared_ptr<const StateSnapshot> snapshot, absl::string_view finish_reason,
    absl::string_view request_id) {
  Garbage garbage;
  auto turn = std::make_shared<Turn>();
  turn->input = std::move(input);
  turn->output = std::move(output);
  turn->finish_reason = std::string(finish_reason);
  turn->model = lease.model.fingerprint;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(lease.key);
  SKEIN_CHECK(it != conversations_.end() && it->second.busy);
  Conversation& conversation = it->second;
  Tenant& tenant = tenants_.at(lease.key.tenant);
  SKEIN_RETURN_IF_ERROR(RoomFor(lease.key.tenant, lease.quotas, 0,
                                kVersionBytes + turn->bytes() + PromptBytes(lease.prompt)));
  Pay(&tenant, kVersionBytes + turn->bytes());
  turn->payer = &tenant;

  Version version;
  version.parent = lease.prompt == nullptr
                       ? lease.base_version
                       : AddPrompt(lease.prompt, &tenant, &conversation, &garbage);
  version.time = options_.wall_now();
  version.tokens = lease.tokens + turn->tokens();
  version.turn = std::move(turn);
  if (snapshot != nullptr) {
    SKEIN_CHECK(snapshot->consumed <= version.tokens &&
                snapshot->model_fingerprint == lease.model.fingerprint);
    version.cell = cache_.Add(std::move(snapshot), &tenant.states, &garbage);
  }
  const int64_t id = conversation.next_version++;
  conversation.vocabulary = lease.model.vocabulary;
  conversation.versions.emplace(id, std::move(version));
  conversation.head = id;
  conversation.busy = false;
  conversation.ttl = lease.ttl.value_or(conversation.ttl);
  conversation.last_request_id = std::string(request_id);
  conversation.last_end = std::string(finish_reason);
  KeepStates(&conversation, &garbage);
  ShrinkToQuota(&tenant, lease.quotas, &garbage);
  Use(&*it);
  Schedule(&*it);
  lines_.WakeFirst(lease.key);
  return id;
}

// The head's own branch first, from its end: that is where users regenerate and edit, and other
// branches are soon made again of it. Then the newest of those.
void ConversationStore::Impl::KeepStates(Conversation* conversation, Garbage* garbage) {
  int32_t room = options_.history;
  std::set<int64_t> kept;
  for (int64_t id = conversation->head; id != 0 && room > 0;) {
    const Version& version = conversation->versions.at(id);
    if (version.has_state()) {
      kept.insert(id);
      --room;
    }
    id = version.parent;
  }
  for (auto it = conversation->versions.rbegin(); it != conversation->versions.rend(); ++it) {
    auto& [id, version] = *it;
    if (version.cell == nullptr || kept.contains(id)) continue;
    if (version.has_state() && room > 0) {
      --room;
      continue;
    }
    version.gone = version.has_state() ? Miss::kHistory : Miss::kEvicted;
    cache_.Drop(version.cell, garbage);
    version.cell = nullptr;
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
  Use(&*it);
  Schedule(&*it);
  if (lease.created) Bury(it, Gone::kNotCommitted, &garbage);
  lines_.WakeFirst(lease.key);
}

// ---- the public face

ConversationStore::ConversationStore(const ConversationStoreOptions& options)
    : impl_(std::make_unique<Impl>(options)) {}
ConversationStore::~ConversationStore() = default;

absl::StatusOr<Lease> ConversationStore::Acquire(const LeaseRequest& request) {
  return impl_->Acquire(request);
}
absl::StatusOr<std::vector<Lease>> ConversationStore::AcquireCopies(const LeaseRequest& request,
                                                                    int32_t n) {
  return impl_->AcquireCopies(request, n);
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
absl::StatusOr<uint64_t> ConversationStore::Join(LeaseRequest request, std::function<void()> wake) {
  return impl_->Join(std::move(request), std::move(wake));
}
absl::StatusOr<std::optional<Lease>> ConversationStore::Claim(uint64_t ticket) {
  return impl_->Claim(ticket);
}
void ConversationStore::Leave(uint64_t ticket) { impl_->Leave(ticket); }
int64_t ConversationStore::Ahead(uint64_t ticket) const { return impl_->Ahead(ticket); }
absl::StatusOr<ConversationInfo> ConversationStore::Create(const ConversationKey& key,
                                                           const NewConversation& made) {
  return impl_->Create(key, made);
}
absl::StatusOr<ConversationInfo> ConversationStore::Get(const ConversationKey& key) const {
  return impl_->Get(key);
}
absl::StatusOr<std::vector<VersionInfo>> ConversationStore::History(const ConversationKey& key,
                                                                    int64_t after, int32_t limit,
                                                                    int64_t tokens) const {
  return impl_->History(key, after, limit, tokens);
}
std::vector<ConversationInfo> ConversationStore::List(const ListQuery& query) const {
  return impl_->List(query);
}
absl::Status ConversationStore::Delete(const ConversationKey& key) { return impl_->Delete(key); }
absl::StatusOr<std::vector<ConversationInfo>> ConversationStore::Fork(
    const ConversationKey& key, std::optional<int64_t> version, int32_t n,
    const std::vector<std::string>& ids, const NewConversation& made) {
  return impl_->Fork(key, version, n, ids, made);
}
absl::StatusOr<ConversationInfo> ConversationStore::Rewind(const ConversationKey& key,
                                                           int64_t version) {
  return impl_->Rewind(key, version);
}
void ConversationStore::SetLimits(const ConversationStoreOptions& options) {
  impl_->SetLimits(options);
}
void ConversationStore::Expire() { impl_->Expire(); }
ConversationStoreGauges ConversationStore::gauges() const { return impl_->gauges(); }

}  // namespace skein::engine
