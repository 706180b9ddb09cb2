// What clients do with whole conversations: create, look, list, delete, fork, rewind.

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {
namespace {

using base::MakeStatus;
using Garbage = SnapshotCache::Garbage;

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

ConversationInfo ConversationStore::Impl::Describe(const Entry& entry) {
  const Conversation& conversation = entry.second;
  ConversationInfo info;
  info.id = entry.first.id;
  info.head = conversation.head;
  info.tokens = conversation.TokensAt(conversation.head);
  for (const auto& [id, version] : conversation.versions) {
    if (version.has_state()) info.state_bytes += version.cell->snapshot->bytes();
  }
  info.busy = conversation.busy;
  info.created = conversation.created;
  info.used = conversation.used;
  info.last_request_id = conversation.last_request_id;
  info.last_end = conversation.last_end;
  return info;
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Create(const ConversationKey& key) {
  std::lock_guard<std::mutex> lock(mu_);
  if (conversations_.contains(key)) return Exists(key.id);
  SKEIN_RETURN_IF_ERROR(RoomFor(1, kConversationBytes));
  return Describe(Insert({key.tenant, key.id.empty() ? RandomId() : key.id}));
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Get(const ConversationKey& key) const {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = conversations_.find(key);
  if (it == conversations_.end()) return NoSuchConversation(key);
  return Describe(*it);
}

absl::StatusOr<std::vector<VersionInfo>> ConversationStore::Impl::History(
    const ConversationKey& key) const {
  std::lock_guard<std::mutex> lock(mu_);
  const auto it = conversations_.find(key);
  if (it == conversations_.end()) return NoSuchConversation(key);
  std::vector<VersionInfo> history;
  history.reserve(it->second.versions.size());
  for (const auto& [number, version] : it->second.versions) {
    history.push_back({number, version.parent, version.turn->input, version.turn->output,
                       version.turn->finish_reason, version.turn->time, version.tokens,
                       version.has_state()});
  }
  return history;
}

std::vector<ConversationInfo> ConversationStore::Impl::List(absl::string_view tenant,
                                                            absl::string_view prefix,
                                                            absl::string_view after,
                                                            int32_t limit) const {
  std::lock_guard<std::mutex> lock(mu_);
  std::vector<ConversationInfo> found;
  auto it = conversations_.lower_bound({std::string(tenant), std::string(prefix)});
  if (!after.empty() && after >= prefix) {
    it = conversations_.upper_bound({std::string(tenant), std::string(after)});
  }
  for (; it != conversations_.end() && static_cast<int32_t>(found.size()) < limit; ++it) {
    if (it->first.tenant != tenant || !absl::StartsWith(it->first.id, prefix)) break;
    found.push_back(Describe(*it));
  }
  return found;
}

absl::Status ConversationStore::Impl::Delete(const ConversationKey& key) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(key);
  if (it == conversations_.end()) return NoSuchConversation(key);
  if (it->second.busy) return Busy(key);
  Remove(it, &garbage);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> ConversationStore::Impl::ForkIds(
    absl::string_view tenant, int32_t n, const std::vector<std::string>& ids) const {
  if (n < 1)
    return absl::InvalidArgumentError(absl::StrCat("a fork makes at least 1 copy, not ", n));
  if (!ids.empty() && static_cast<int64_t>(ids.size()) != n) {
    return absl::InvalidArgumentError(absl::StrCat("got ", ids.size(), " ids for ", n, " copies"));
  }
  std::vector<std::string> names;
  for (int32_t i = 0; i < n; ++i) {
    std::string name = ids.empty() || ids[i].empty() ? RandomId() : ids[i];
    if (conversations_.contains({std::string(tenant), name}) ||
        std::find(names.begin(), names.end(), name) != names.end()) {
      return Exists(name);
    }
    names.push_back(std::move(name));
  }
  return names;
}

void ConversationStore::Impl::CopyUpTo(const Conversation& from, int64_t version,
                                       Conversation* to) {
  to->head = version;
  to->next_version = version + 1;
  while (version != 0) {
    const Version& source = from.versions.at(version);
    Version copy = source;
    if (source.cell != nullptr) copy.cell = cache_.Share(source.cell);
    token_bytes_ += kVersionBytes;
    to->versions.emplace(version, std::move(copy));
    version = source.parent;
  }
}

absl::StatusOr<std::vector<ConversationInfo>> ConversationStore::Impl::Fork(
    const ConversationKey& key, std::optional<int64_t> version, int32_t n,
    const std::vector<std::string>& ids) {
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(key);
  if (it == conversations_.end()) return NoSuchConversation(key);
  const absl::StatusOr<int64_t> base = Base(*it, version);
  if (!base.ok()) return base.status();
  absl::StatusOr<std::vector<std::string>> names = ForkIds(key.tenant, n, ids);
  if (!names.ok()) return names.status();
  const int64_t each =
      kConversationBytes + kVersionBytes * static_cast<int64_t>(it->second.versions.size());
  SKEIN_RETURN_IF_ERROR(RoomFor(n, n * each));
  std::vector<ConversationInfo> copies;
  for (std::string& name : *names) {
    Entry& copy = Insert({key.tenant, std::move(name)});
    CopyUpTo(it->second, *base, &copy.second);
    copies.push_back(Describe(copy));
  }
  return copies;
}

absl::StatusOr<ConversationInfo> ConversationStore::Impl::Rewind(const ConversationKey& key,
                                                                 int64_t version) {
  std::lock_guard<std::mutex> lock(mu_);
  const Map::iterator it = conversations_.find(key);
  if (it == conversations_.end()) return NoSuchConversation(key);
  if (it->second.busy) return Busy(key);
  const absl::StatusOr<int64_t> base = Base(*it, version);
  if (!base.ok()) return base.status();
  it->second.head = *base;
  it->second.used = absl::Now();
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
  return gauges;
}

}  // namespace skein::engine
