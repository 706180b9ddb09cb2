// How conversations go: expiry, removal, and what is remembered of them.

#include <utility>

#include "absl/time/time.h"
#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {
namespace {

constexpr int kExpireAtOnce = 256;  // under one hold of the lock

const char* NameOf(Gone why) {
  switch (why) {
    case Gone::kExpired:
      return "EXPIRED";
    case Gone::kDeleted:
      return "DELETED";
    case Gone::kNotCommitted:
      return "NOT_COMMITTED";
  }
  return "";
}

const char* Explain(Gone why) {
  switch (why) {
    case Gone::kExpired:
      return "it was not used for its ttl and expired";
    case Gone::kDeleted:
      return "it was deleted";
    case Gone::kNotCommitted:
      return "the request that made it ended without a commit";
  }
  return "";
}

std::string Rfc3339(absl::Time time) {
  return absl::FormatTime(absl::RFC3339_sec, time, absl::UTCTimeZone());
}

}  // namespace

ConversationStore::Impl::Map::iterator ConversationStore::Impl::Find(const ConversationKey& key,
                                                                     Garbage* garbage) {
  const Map::iterator it = conversations_.find(key);
  if (it == conversations_.end() || !Expired(*it)) return it;
  Bury(it, Gone::kExpired, garbage);
  return conversations_.end();
}

absl::Status ConversationStore::Impl::Missing(const ConversationKey& key) const {
  const auto tenant = tenants_.find(key.tenant);
  const Tombstone* stone =
      tenant == tenants_.end() ? nullptr : tenant->second.tombstones.Find(key.id);
  const std::string what = absl::StrCat("no conversation '", key.id, "'");
  if (stone == nullptr) {
    return base::MakeStatus(absl::StatusCode::kNotFound, "CONVERSATION_NOT_FOUND", what);
  }
  absl::Status status =
      base::MakeStatus(absl::StatusCode::kNotFound, "CONVERSATION_NOT_FOUND",
                       absl::StrCat(what, ": ", Explain(stone->why), " (last used ",
                                    Rfc3339(stone->last_seen), ")"));
  base::SetMetadata(&status, "reason", NameOf(stone->why));
  base::SetMetadata(&status, "last_seen", Rfc3339(stone->last_seen));
  base::SetMetadata(&status, "gone", Rfc3339(stone->when));
  return status;
}

void ConversationStore::Impl::Use(Entry* entry) {
  entry->second.used = options_.wall_now();
  entry->second.used_steady = options_.steady_now();
}

void ConversationStore::Impl::Schedule(Entry* entry) {
  Unschedule(&entry->second);
  if (entry->second.ttl == absl::InfiniteDuration()) return;
  entry->second.expiry =
      expiries_.emplace(entry->second.used_steady + entry->second.ttl, &entry->first);
}

void ConversationStore::Impl::Unschedule(Conversation* conversation) {
  if (!conversation->expiry.has_value()) return;
  expiries_.erase(*conversation->expiry);
  conversation->expiry.reset();
}

bool ConversationStore::Impl::InUse(const Entry& entry) const {
  return entry.second.busy || lines_.WaitingFor(entry.first) > 0;
}

bool ConversationStore::Impl::Expired(const Entry& entry) const {
  return entry.second.expiry.has_value() &&
         (*entry.second.expiry)->first <= options_.steady_now() && !InUse(entry);
}

void ConversationStore::Impl::Expire() {
  for (int done = kExpireAtOnce; done == kExpireAtOnce;) {
    Garbage garbage;  // freed between two holds of the lock
    std::lock_guard<std::mutex> lock(mu_);
    const absl::Time now = options_.steady_now();
    done = 0;
    for (auto it = expiries_.begin();
         it != expiries_.end() && it->first <= now && done < kExpireAtOnce; ++done) {
      const Map::iterator conversation = conversations_.find(*(it++)->second);
      SKEIN_CHECK(conversation != conversations_.end());
      if (InUse(*conversation)) {
        // Somebody is about to take it; it is scheduled again afterwards.
        Unschedule(&conversation->second);
      } else {
        Bury(conversation, Gone::kExpired, &garbage);
      }
    }
  }
}

void ConversationStore::Impl::Bury(Map::iterator it, Gone why, Garbage* garbage) {
  Conversation& conversation = it->second;
  Tenant& tenant = tenants_.at(it->first.tenant);
  tenant.tombstones.Add(it->first.id, {why, conversation.used, options_.wall_now()},
                        options_.tombstones);
  for (auto& [id, version] : conversation.versions) {
    if (version.cell != nullptr) cache_.Drop(version.cell, garbage);
    Pay(&tenant, -kVersionBytes);
    if (version.turn.use_count() == 1) Pay(version.turn->payer, -version.turn->bytes());
    version.turn = nullptr;
  }
  Pay(&tenant, -kConversationBytes);
  --tenant.conversations;
  if (why == Gone::kExpired) ++expired_;
  if (why == Gone::kDeleted) ++deleted_;
  Unschedule(&conversation);
  conversations_.erase(it);
}

}  // namespace skein::engine
