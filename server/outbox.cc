#include "server/outbox.h"

#include "skein/v1/control.pb.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

void WriteGate::End(absl::Status status) {
  if (!end_.has_value()) end_ = std::move(status);
}

void WriteGate::Drop(absl::Status status) {
  dropped_ = true;
  end_ = std::move(status);
}

void WriteGate::WriteDone(bool ok) {
  in_flight_ = false;
  if (ok) return;
  dropped_ = true;
  if (!end_.has_value()) end_ = absl::CancelledError("the client is gone");
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Next() {
  if (!gate_.open()) return Action();
  if (gate_.dropped()) pending_.clear();
  std::optional<Event> event;
  if (!pending_.empty()) {
    event = std::move(pending_.front());
    pending_.pop_front();
  }
  return gate_.Next(std::move(event), pending_.empty());
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Push(Event event) {
  const std::lock_guard lock(mu_);
  if (gate_.ended()) return Action();
  pending_.push_back(std::move(event));
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::End(absl::Status status) {
  const std::lock_guard lock(mu_);
  gate_.End(std::move(status));
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::WriteDone(bool ok) {
  const std::lock_guard lock(mu_);
  gate_.WriteDone(ok);
  return Next();
}

template <typename Event>
typename Outbox<Event>::Action Outbox<Event>::Drop(absl::Status status) {
  const std::lock_guard lock(mu_);
  gate_.Drop(std::move(status));
  pending_.clear();
  return Next();
}

template class Outbox<skein::v1::ScoreResponse>;
template class Outbox<skein::v1::LoadModelResponse>;

}  // namespace skein::server
