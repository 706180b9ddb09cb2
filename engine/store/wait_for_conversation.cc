// The line for a busy conversation.

#include <utility>

#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {

absl::StatusOr<uint64_t> ConversationStore::Impl::Join(LeaseRequest request,
                                                       std::function<void()> wake) {
  std::lock_guard<std::mutex> lock(mu_);
  const ConversationKey key = request.key;
  const uint64_t ticket = lines_.Join({std::move(request), std::move(wake)});
  if (ticket == 0) {
    return base::MakeStatus(absl::StatusCode::kAborted, "CONVERSATION_BUSY",
                            absl::StrCat("conversation '", key.id, "' is in use and ",
                                         options_.max_waiting, " requests wait for it already"));
  }
  LeftIdle(key);
  return ticket;
}

absl::StatusOr<std::optional<Lease>> ConversationStore::Impl::Claim(uint64_t ticket) {
  Garbage garbage;
  std::lock_guard<std::mutex> lock(mu_);
  const WaitingLines::Place* place = lines_.Find(ticket);
  SKEIN_CHECK(place != nullptr);
  const Map::iterator it = conversations_.find(place->request.key);
  const bool busy = it != conversations_.end() && it->second.busy;
  if (busy || !lines_.IsFirst(ticket)) return std::optional<Lease>();
  const LeaseRequest request = place->request;
  lines_.Leave(ticket);
  absl::StatusOr<Lease> lease = TakeLease(request, &garbage);
  if (lease.ok()) return std::optional<Lease>(*std::move(lease));
  LeftIdle(request.key);
  return lease.status();
}

void ConversationStore::Impl::Leave(uint64_t ticket) {
  std::lock_guard<std::mutex> lock(mu_);
  const WaitingLines::Place* place = lines_.Find(ticket);
  SKEIN_CHECK(place != nullptr);
  const ConversationKey key = place->request.key;
  lines_.Leave(ticket);
  LeftIdle(key);
}

void ConversationStore::Impl::LeftIdle(const ConversationKey& key) {
  const Map::iterator it = conversations_.find(key);
  if (it != conversations_.end()) {
    if (it->second.busy) return;
    Schedule(&*it);
  }
  lines_.WakeFirst(key);
}

int64_t ConversationStore::Impl::Ahead(uint64_t ticket) const {
  std::lock_guard<std::mutex> lock(mu_);
  return lines_.Ahead(ticket);
}

}  // namespace skein::engine
