#pragma once
// Where submitting threads and the engine thread meet: the bounded queue of new requests, the
// registry of running ones, cancellation, drain, and the measured drain rate. Thread-safe; refusals
// cost O(1).

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/sequence.h"

namespace skein::engine {

class RequestQueue {
 public:
  RequestQueue(int32_t max_requests, int64_t max_tokens)
      : max_requests_(max_requests), max_tokens_(max_tokens) {}

  // ---- submitting threads. Reserve, then Push or Abandon.
  absl::StatusOr<std::shared_ptr<RequestControl>> Reserve(absl::string_view request_id,
                                                          int64_t tokens);
  void Push(std::unique_ptr<Sequence> sequence);
  void Abandon(absl::string_view request_id, int64_t tokens);
  bool Cancel(absl::string_view request_id, RequestControl::Cancel how);
  void Nudge();  // there is something for the engine thread to look at

  // ---- any thread
  void BeginDrain(absl::Time deadline);  // monotonic
  void EndDrain();
  void SetLimits(int32_t max_requests, int64_t max_tokens);
  void WaitUntilNoneRuns();
  void Stop();  // refuse all from now on; the engine thread ends
  bool draining() const;
  absl::Duration RetryDelay() const;
  struct Counts {
    int32_t running = 0, waiting = 0;
    int64_t waiting_tokens = 0;
  };
  Counts counts() const;

  // ---- engine thread
  struct Orders {
    bool stop = false;
    absl::Time drain_by = absl::InfiniteFuture();  // when what runs has to end
  };
  // Appends what was submitted to *arrivals. Waits for something new, at most until `until`;
  // InfinitePast: not at all.
  Orders Take(absl::Time until, std::vector<std::unique_ptr<Sequence>>* arrivals);
  // The request no longer waits: it was admitted, or it ended in the queue.
  void Left(int64_t tokens, absl::Time now);
  // The request has ended; its id may be used again.
  void Ended(absl::string_view request_id);
  // The last events of this many ended requests are on their way: they no longer count as running
  // for a drain.
  void Settled(int32_t n);

 private:
  mutable std::mutex mu_;
  int32_t max_requests_ ABSL_GUARDED_BY(mu_);
  int64_t max_tokens_ ABSL_GUARDED_BY(mu_);
  std::condition_variable wake_, none_runs_;
  std::vector<std::unique_ptr<Sequence>> inbox_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, std::shared_ptr<RequestControl>> requests_ ABSL_GUARDED_BY(mu_);
  int32_t unsettled_ ABSL_GUARDED_BY(mu_) = 0;  // reserved and not settled
  int32_t waiting_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  bool nudged_ ABSL_GUARDED_BY(mu_) =
      false;  // something but an arrival wants the engine thread's attention
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_by_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  absl::Time last_left_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Duration interval_ ABSL_GUARDED_BY(mu_) =
      absl::ZeroDuration();  // between two that leave a busy queue
};

}  // namespace skein::engine
