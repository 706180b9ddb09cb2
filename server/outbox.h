#pragma once
// What one stream still has to send: a pure state machine, no gRPC inside. Each call tells the
// caller what to do now, outside of any lock: nothing, write one event, finish, or both in one.
// Guarantees, whatever the threads do:
//   - at most one write is in flight; the next one is told by WriteDone;
//   - finish is told exactly once, and never while a write is in flight;
//   - events leave in order; deltas that pile up during a write leave as one (Coalesce).
// Bounded by tokens: past the bound `writable` turns false and the engine pauses the request.

#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

// Merges `next` into `last` when the pair may leave as one event; else false and both are
// unchanged.
bool Coalesce(skein::v1::GenerateResponse* last, skein::v1::GenerateResponse* next);
bool Coalesce(skein::v1::ScoreResponse* last, skein::v1::ScoreResponse* next);

// Thread-safe. Instantiated in outbox.cc for GenerateResponse and ScoreResponse.
template <typename Event>
class Outbox {
 public:
  struct Action {
    enum Kind { kNothing, kWrite, kWriteAndFinish, kFinish };
    Kind kind = kNothing;
    Event event;          // to write
    absl::Status status;  // to finish with
  };

  explicit Outbox(int64_t max_tokens) : max_tokens_(max_tokens) {}

  // After End or Drop the event is thrown away.
  Action Push(Event event, int64_t tokens, absl::Time now);
  // No more events: finish with `status` once all that is pending has left. Only the first call
  // counts.
  Action End(absl::Status status);
  // The write told before is done; `ok` false: the transport is gone.
  Action WriteDone(bool ok);
  // The client is gone: throw away what is pending, finish with `status` as soon as no write is in
  // flight.
  Action Drop(absl::Status status);

  // Lock-free. False: the reader is slow, do not produce more.
  bool writable() const { return waiting_tokens_.load(std::memory_order_relaxed) < max_tokens_; }
  // How long the oldest event has been here, the one in flight included.
  absl::Duration Age(absl::Time now) const;

 private:
  Action Next();  // with mu_ held

  const int64_t max_tokens_;
  std::atomic<int64_t> waiting_tokens_{0};  // in pending_; written under mu_

  struct Pending {
    Event event;
    absl::Time since;
  };
  mutable std::mutex mu_;  // guards all below; a mutex that the thread sanitizer knows
  std::deque<Pending> pending_;
  bool in_flight_ = false;
  absl::Time in_flight_since_;
  std::optional<absl::Status> end_;
  bool finished_ = false;
};

}  // namespace skein::server
