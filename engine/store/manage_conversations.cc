// What clients do with whole conversations: create, look, list, delete, fork, rewind.

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {
namespace {

using base::MakeStatus;

constexpr int kListAtOnce = 256;  // conversations looked at under one hold of the lock

std::string RandomId() {
  std::random_device source;
  const auto word = [&] { return (uint64_t{source()} << 32) | source(); };
  return absl::StrFormat("%016x%016x", word(), word());
}

absl::Status Exists(absl::string_view id) {
  return MakeStatus(absl::StatusCode::kAlreadyExists, "CONVERSATION_EXISTS",
                    absl::StrCat("conversation '", id, "' exists already"));
}

}  // namespace

ConversationInfo ConversationStore::Impl::Describe(const Entry& entry) const {
  const Conversation& conversation = entry.second;
  ConversationInfo info;
  info.id = entry.first.id;
  info.head = conversation.head;
  info.tokens = conversation.TokensAt(conversation.head);
  for (const auto& [id, version] : conversation.versions) {
    if (version.has_state()) info.state_bytes += version.cell->snapshot->bytes();
  }
  info.busy = conversation.busy;
  info.waiting = lines_.WaitingFor(entry.first);
  info.created = conversation.created;
  info.used = conversation.used;
  info.ttl = conversation.ttl;
  info.last_request_id = conversation.last_request_id;
  info.last_end = conversation.last_end;
  info.vocabulary = conversation.vocabulary;
  if (conversation.head != 0) {
    info.model_fingerprint = conversation.versions.at(conversation.head).turn->model;
  }
  return info;
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Create(const ConversationKey& key,
                                                                 const NewConversation& made) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  if (Find(key, &garbage) != conversations_.end()) return Exists(key.id);
  SKEIN_RETURN_IF_ERROR(
      RoomFor(key.tenant, made.quotas, 1, kConversationBytes + PromptBytes(made.prompt)));
  Entry& entry =
      Insert({key.tenant, key.id.empty() ? RandomId() : key.id}, made.ttl.value_or(options_.ttl));
  if (made.prompt != nullptr) {
    Conversation& conversation = entry.second;
    conversation.head = AddPrompt(made.prompt, &tenants_.at(key.tenant), &conversation, &garbage);
    conversation.vocabulary = made.prompt->model.vocabulary;
  }
  return Describe(entry);
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Get(const ConversationKey& key) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = Find(key, &garbage);
  if (it == conversations_.end()) return Missing(key);
  return Describe(*it);
}

absl::StatusOr<std::vector<VersionInfo>> ConversationStore::Impl::History(
    const ConversationKey& key, int64_t after, int32_t limit, int64_t tokens) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator found = Find(key, &garbage);
  if (found == conversations_.end()) return Missing(key);
  const std::map<int64_t, Version>& versions = found->second.versions;
  std::vector<VersionInfo> history;
  for (auto it = versions.upper_bound(after); it != versions.end(); ++it) {
    if (static_cast<int64_t>(history.size()) >= limit || tokens <= 0) break;
    const Version& version = it->second;
    tokens -= version.turn->tokens();
    history.push_back({it->first, version.parent, version.turn->input, version.turn->output,
                       version.turn->finish_reason, version.time, version.tokens,
                       version.has_state(), version.turn->model, version.turn->prompt_state});
  }
  return history;
}

bool ConversationStore::Impl::Matches(const Entry& entry, const ListQuery& query) const {
  const Conversation& conversation = entry.second;
  if (Expired(entry)) return false;
  if (query.busy.has_value() && conversation.busy != *query.busy) return false;
  if (query.has_state.has_value()) {
    const bool has =
        conversation.head != 0 && conversation.versions.at(conversation.head).has_state();
    if (has != *query.has_state) return false;
  }
  return conversation.used >= query.used_since && conversation.used < query.used_before;
}

std::vector<ConversationInfo> ConversationStore::Impl::List(const ListQuery& query) const {
  std::vector<ConversationInfo> found;
  // The first id not looked at yet; `after` itself is not wanted.
  ConversationKey next{query.tenant, std::max(query.prefix, query.after)};
  bool skip_first = !query.after.empty() && query.after >= query.prefix;
  while (true) {
    std::lock_guard<std::mutex> lock(mu_);
    auto it = skip_first ? conversations_.upper_bound(next) : conversations_.lower_bound(next);
    for (int looked = 0; looked < kListAtOnce; ++looked, ++it) {
      if (static_cast<int64_t>(found.size()) >= query.limit || it == conversations_.end() ||
          it->first.tenant != query.tenant || !absl::StartsWith(it->first.id, query.prefix)) {
        return found;
      }
      if (Matches(*it, query)) found.push_back(Describe(*it));
      next.id = it->first.id;
      skip_first = true;
    }
  }
}

absl::Status ConversationStore::Impl::Delete(const ConversationKey& key) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = Find(key, &garbage);
  if (it == conversations_.end()) return Missing(key);
  if (InUse(*it)) return Busy(key);
  Bury(it, Gone::kDeleted, &garbage);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ConversationKey>> ConversationStore::Impl::ForkKeys(
    const std::string& tenant, int32_t n, const std::vector<std::string>& ids, Garbage* garbage) {
  if (n < 1)
    return absl::InvalidArgumentError(absl::StrCat("a fork makes at least 1 copy, not ", n));
  if (!ids.empty() && static_cast<int64_t>(ids.size()) != n) {
    return absl::InvalidArgumentError(absl::StrCat("got ", ids.size(), " ids for ", n, " copies"));
  }
  std::vector<ConversationKey> keys;
  for (int32_t i = 0; i < n; ++i) {
    ConversationKey key{tenant, ids.empty() || ids[i].empty() ? RandomId() : ids[i]};
    if (Find(key, garbage) != conversations_.end() ||
        std::find(keys.begin(), keys.end(), key) != keys.end()) {
      return Exists(key.id);
    }
    keys.push_back(std::move(key));
  }
  return keys;
}

void ConversationStore::Impl::CopyUpTo(const Conversation& from, int64_t version, Tenant* payer,
                                       Conversation* to) {
  to->head = version;
  to->next_version = version + 1;
  to->vocabulary = from.vocabulary;
  while (version != 0) {
    const Version& source = from.versions.at(version);
    Version copy = source;
    if (source.cell != nullptr) copy.cell = cache_.Share(source.cell);
    Pay(payer, kVersionBytes);
    to->versions.emplace(version, std::move(copy));
    version = source.parent;
  }
}

absl::StatusOr<std::vector<ConversationInfo>> ConversationStore::Impl::Fork(
    const ConversationKey& key, std::optional<int64_t> version, int32_t n,
    const std::vector<std::string>& ids, const NewConversation& made) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const std::string& tenant = made.tenant.has_value() ? *made.tenant : key.tenant;
  absl::StatusOr<std::vector<ConversationKey>> keys = ForkKeys(tenant, n, ids, &garbage);
  if (!keys.ok()) return keys.status();
  const Map::iterator it = Find(key, &garbage);
  if (it == conversations_.end()) return Missing(key);
  SKEIN_ASSIGN_OR_RETURN(const int64_t base, Base(*it, version));
  const int64_t each = kConversationBytes + kVersionBytes * it->second.Depth(base);
  SKEIN_RETURN_IF_ERROR(RoomFor(tenant, made.quotas, n, n * each));
  Use(&*it);
  if (!it->second.busy) Schedule(&*it);
  std::vector<ConversationInfo> copies;
  for (ConversationKey& name : *keys) {
    Entry& copy = Insert(std::move(name), made.ttl.value_or(it->second.ttl));
    CopyUpTo(it->second, base, &tenants_.at(tenant), &copy.second);
    copies.push_back(Describe(copy));
  }
  return copies;
}

absl::StatusOr<std::vector<Lease>> ConversationStore::Impl::AcquireCopies(
    const LeaseRequest& request, int32_t n) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const std::string& tenant = request.key.tenant;
  std::vector<ConversationKey> keys;
  if (n > 0) {
    SKEIN_ASSIGN_OR_RETURN(keys, ForkKeys(tenant, n, {}, &garbage));
  }
  const Map::iterator it = Find(request.key, &garbage);
  SKEIN_ASSIGN_OR_RETURN(const int64_t base, LeaseBase(request, it));
  static const Conversation kNone;
  const Conversation& source = it == conversations_.end() ? kNone : it->second;
  const int64_t each = kConversationBytes + kVersionBytes * (source.Depth(base) + 1);
  if (n > 0) SKEIN_RETURN_IF_ERROR(RoomFor(tenant, request.quotas, n, n * each));
  Lease lease;
  lease.key = request.key;
  lease.model = request.model;
  if (it != conversations_.end()) {
    Use(&*it);
    if (!it->second.busy) Schedule(&*it);
    lease = MakeLease(*it, base, request);
  } else if (request.prompt != nullptr) {
    BeginWith(request.prompt, request.want_all_tokens, &lease);
  }
  if (n == 0) return std::vector<Lease>{std::move(lease)};
  const absl::Duration ttl = it == conversations_.end() ? options_.ttl : source.ttl;
  std::vector<Lease> leases;
  for (ConversationKey& key : keys) {
    Entry& copy = Insert(std::move(key), request.ttl.value_or(ttl));
    CopyUpTo(source, base, &tenants_.at(tenant), &copy.second);
    copy.second.busy = true;
    Unschedule(&copy.second);
    lease.key = copy.first;
    lease.created = true;
    leases.push_back(lease);
    lease.pending.clear();  // the first one takes them in for all
    lease.all_tokens.clear();
  }
  return leases;
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Rewind(const ConversationKey& key,
                                                                 int64_t version) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = Find(key, &garbage);
  if (it == conversations_.end()) return Missing(key);
  if (InUse(*it)) return Busy(key);
  SKEIN_ASSIGN_OR_RETURN(it->second.head, Base(*it, version));
  Use(&*it);
  Schedule(&*it);
  return Describe(*it);
}

ConversationStoreGauges ConversationStore::Impl::gauges() const {
  std::lock_guard<std::mutex> lock(mu_);
  ConversationStoreGauges gauges;
  gauges.conversations = static_cast<int64_t>(conversations_.size());
  gauges.snapshot_bytes = cache_.bytes();
  gauges.token_bytes = token_bytes_;
  gauges.budget_bytes = options_.budget_bytes;
  gauges.evictions = cache_.evictions();
  gauges.hits = hits_;
  gauges.misses = misses_;
  gauges.expired = expired_;
  gauges.deleted = deleted_;
  gauges.waiting = lines_.size();
  for (const auto& [name, tenant] : tenants_) gauges.tombstones += tenant.tombstones.size();
  return gauges;
}

}  // namespace skein::engine
