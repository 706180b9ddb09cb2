#include "server/outbox.h"

#include <utility>

namespace skein::server {

bool Coalesce(skein::v1::GenerateResponse* last, skein::v1::GenerateResponse* next) {
  if (last->event_case() != next->event_case()) return false;
  if (next->has_queued() || next->has_progress()) {
    last->Swap(next);  // only the newest matters
    return true;
  }
  if (!next->has_delta() || last->delta().index() != next->delta().index()) return false;
  last->mutable_delta()->mutable_text()->append(next->delta().text());
  for (auto& token : *next->mutable_delta()->mutable_tokens()) {
    *last->mutable_delta()->add_tokens() = std::move(token);
  }
  return true;
}

bool Coalesce(skein::v1::ScoreResponse*, skein::v1::ScoreResponse*) { return false; }

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Next() {
  Action action;
  if (in_flight_ || finished_) return action;
  if (!pending_.empty()) {
    action.event = std::move(pending_.front().event);
    in_flight_since_ = pending_.front().since;
    pending_.pop_front();
    if (pending_.empty()) waiting_tokens_.store(0, std::memory_order_relaxed);
    in_flight_ = true;
    action.kind = Action::kWrite;
  }
  if (pending_.empty() && end_.has_value()) {
    finished_ = true;
    action.status = *end_;
    action.kind = action.kind == Action::kWrite ? Action::kWriteAndFinish : Action::kFinish;
  }
  return action;
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Push(Event event, int64_t tokens, absl::Time now) {
  const std::lock_guard lock(mu_);
  if (end_.has_value()) return Action();
  waiting_tokens_.fetch_add(tokens, std::memory_order_relaxed);
  if (pending_.empty() || !Coalesce(&pending_.back().event, &event)) {
    pending_.push_back({std::move(event), now});
  }
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::End(absl::Status status) {
  const std::lock_guard lock(mu_);
  if (end_.has_value()) return Action();
  end_ = std::move(status);
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::WriteDone(bool ok) {
  const std::lock_guard lock(mu_);
  in_flight_ = false;
  if (!ok) {
    pending_.clear();
    waiting_tokens_.store(0, std::memory_order_relaxed);
    if (!end_.has_value()) end_ = absl::CancelledError("the client is gone");
  }
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Drop(absl::Status status) {
  const std::lock_guard lock(mu_);
  pending_.clear();
  waiting_tokens_.store(0, std::memory_order_relaxed);
  end_ = std::move(status);
  return Next();
}

template <typename Event>
absl::Duration Outbox<Event>::Age(absl::Time now) const {
  const std::lock_guard lock(mu_);
  if (in_flight_) return now - in_flight_since_;
  return pending_.empty() ? absl::ZeroDuration() : now - pending_.front().since;
}

template class Outbox<skein::v1::GenerateResponse>;
template class Outbox<skein::v1::ScoreResponse>;

}  // namespace skein::server
