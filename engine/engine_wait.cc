// Requests that wait for a busy conversation: in the store's line for it, until the store says that
// their turn may have come. They count as waiting and end like those that wait for a slot.

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/clock.h"
#include "engine/engine_loop.h"

namespace skein::engine {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(1);  // of Queued events

}  // namespace

void EngineLoop::Enqueue(SequencePtr sequence) {
  const Admission::Ticket ticket = next_ticket_++;
  sequence->ticket = sequence->control->ticket = ticket;
  // Cancelled before it came here: nobody else would look at it.
  if (sequence->control->cancel != RequestControl::kNone) cancelled_.push_back(sequence->control);
  admission_.Enqueue(sequence->Wish());
  waiting_.emplace(ticket, std::move(sequence));
  untold_ = true;
}

void EngineLoop::ClaimConversations() {
  std::erase_if(in_lines_, [&](SequencePtr& sequence) {
    if (!sequence->control->turn_came.exchange(false)) return false;
    absl::StatusOr<std::optional<Lease>> lease = p_.store.Claim(*sequence->place);
    if (lease.ok() && !lease->has_value()) return false;
    sequence->place.reset();  // the store has taken it out of the line
    absl::Status status = lease.status();
    if (status.ok()) status = p_.begin(**std::move(lease), sequence.get());
    if (status.ok()) {
      Enqueue(std::move(sequence));
    } else {
      Finish(sequence.get(), End::kError, status);
    }
    return true;
  });
}

void EngineLoop::TellPlacesInLines(absl::Time now) {
  for (const SequencePtr& sequence : in_lines_) {
    if (now - sequence->last_position < kHeartbeat) continue;
    sequence->last_position = now;
    p_.shards.Post(sequence->stream, QueuedEvent{p_.store.Ahead(*sequence->place)});
  }
}

// When one of them has to be looked at, if nothing happens before.
absl::Time EngineLoop::NextInLines(absl::Time now) const {
  if (in_lines_.empty()) return absl::InfiniteFuture();
  absl::Time next = std::min(now + kHeartbeat, orders_.drain_by);
  for (const SequencePtr& sequence : in_lines_) {
    next = std::min({next, sequence->deadline, sequence->submitted + sequence->stopping.max_time});
  }
  return next;
}

}  // namespace skein::engine
