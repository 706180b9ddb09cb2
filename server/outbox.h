#pragma once
// What one stream still has to send: pure state machines, no gRPC inside. Each call tells the
// caller what to do now, outside of any lock: nothing, write one event, finish, or both in one.
// Guarantees, whatever the threads do:
//   - at most one write is in flight; the next one is told by WriteDone;
//   - finish is told exactly once, and never while a write is in flight;
//   - events leave in order.

#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/status/status.h"

namespace skein::server {

template <typename Event>
struct WriteAction {
  enum Kind { kNothing, kWrite, kWriteAndFinish, kFinish };
  Kind kind = kNothing;
  Event event;          // to write
  absl::Status status;  // to finish with
};

// When a stream may write and when it has to finish. Has no events and no lock: whoever owns it
// guards it together with what there is to send.
class WriteGate {
 public:
  // There will be no more events. Only the first call counts.
  void End(absl::Status status);
  // The reader is gone or turned away: finish with `status`, whatever is still to be sent.
  void Drop(absl::Status status);
  // The write told before is done; `ok` false: the transport is gone.
  void WriteDone(bool ok);

  // Something may be told now: no write is in flight and finish was not told.
  bool open() const { return !in_flight_ && !finished_; }
  bool ended() const { return end_.has_value(); }
  bool dropped() const { return dropped_; }
  bool finished() const { return finished_; }

  // While open: what to do, given the next event if there is one; `last`: nothing is behind it.
  template <typename Event>
  WriteAction<Event> Next(std::optional<Event> event, bool last) {
    WriteAction<Event> action;
    if (event.has_value()) {
      action.event = *std::move(event);
      action.kind = WriteAction<Event>::kWrite;
      in_flight_ = true;
    }
    if (last && end_.has_value()) {
      finished_ = true;
      action.status = *end_;
      action.kind = action.kind == WriteAction<Event>::kWrite ? WriteAction<Event>::kWriteAndFinish
                                                              : WriteAction<Event>::kFinish;
    }
    return action;
  }

 private:
  bool in_flight_ = false;
  bool finished_ = false;
  bool dropped_ = false;
  std::optional<absl::Status> end_;
};

// A queue of events behind a gate. Its bound is its producer's: what it pushes is bounded by the
// request. Thread-safe. Instantiated in outbox.cc.
template <typename Event>
class Outbox {
 public:
  using Action = WriteAction<Event>;

  // After End or Drop the event is thrown away.
  Action Push(Event event);
  // No more events: finish with `status` once all that is pending has left. Only the first call
  // counts.
  Action End(absl::Status status);
  // The write told before is done; `ok` false: the transport is gone.
  Action WriteDone(bool ok);
  // The client is gone: throw away what is pending, finish with `status` as soon as no write is in
  // flight.
  Action Drop(absl::Status status);

 private:
  Action Next();  // with mu_ held

  std::mutex mu_;  // guards all below; a mutex that the thread sanitizer knows
  std::deque<Event> pending_;
  WriteGate gate_;
};

}  // namespace skein::server
