#pragma once
// Where submitting threads and the engine thread meet: the bounded queue of new requests, the
// registry of running ones, cancellation, drain, and the measured drain rate. Thread-safe; refusals
// cost O(1).
//
// Bounds: at most `max_requests` wait, with `max_tokens` prompt tokens together, and no tenant has
// more than its quota of either; what runs is bounded by the engine's slots and parked states. The
// inbox, the cancelled list and the registry hold nothing but these.

#include <atomic>
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
#include "engine/deadline_load.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "engine/step_cost.h"

namespace skein::engine {

class RequestQueue {
 public:
  RequestQueue(int32_t max_requests, int64_t max_tokens)
      : max_requests_(max_requests), max_tokens_(max_tokens) {}

  // ---- submitting threads. Reserve, then Push or Abandon.
  // What Reserve would refuse of any request of this tenant: draining, full, or its quota of
  // requests. Without a lock where there is no such quota.
  absl::Status CheckOpen(const std::string& tenant, const Quotas& quotas) const;
  // Takes a place in the queue, which `place` remembers. Refuses: DRAINING, QUEUE_FULL,
  // QUEUE_TOKENS_FULL, TENANT_QUOTA, REQUEST_ID_IN_USE, and DEADLINE_UNREACHABLE when the work that
  // is due earlier and its own take longer than is left, at half of the least they were seen to
  // take.
  absl::StatusOr<std::shared_ptr<RequestControl>> Reserve(absl::string_view request_id,
                                                          const Quotas& quotas, absl::Time now,
                                                          QueuePlace* place);
  void Push(std::unique_ptr<Sequence> sequence);
  void Abandon(absl::string_view request_id, const QueuePlace& place);
  bool Cancel(absl::string_view request_id, RequestControl::Cancel how);
  // A call that was accepted and has more to submit: a drain waits for it until its deadline.
  void Hold();
  void LetGo();
  void Nudge();  // there is something for the engine thread to look at

  // ---- any thread
  void BeginDrain(absl::Time deadline);  // monotonic
  void EndDrain();
  void SetLimits(int32_t max_requests, int64_t max_tokens);
  // Nor is held, while a drain has time left.
  void WaitUntilNoneRuns();
  void Stop();  // refuse all from now on; the engine thread ends
  bool draining() const { return closed_.load(std::memory_order_relaxed); }
  // When a refused request would find the queue drained, from the measured rate: it grows with the
  // requests that wait and with the time since one of them left; 0.1 to 60 s.
  absl::Duration RetryDelay(absl::Time now) const;
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
  // Appends what was submitted to *arrivals, and to *cancelled whose cancellation was asked for
  // since. Waits for something new, at most until `until`; InfinitePast: not at all.
  Orders Take(absl::Time until, std::vector<std::unique_ptr<Sequence>>* arrivals,
              std::vector<std::shared_ptr<RequestControl>>* cancelled);
  // What steps cost now.
  void Publish(const StepCost& cost);
  // The request no longer waits: it was admitted, or it ended in the queue.
  void Left(const QueuePlace& place, absl::Time now);
  // The request has ended; its id may be used again.
  void Ended(absl::string_view request_id);
  // The last events of this many ended requests are on their way: they no longer count as running
  // for a drain.
  void Settled(int32_t n);

 private:
  struct Registered {
    std::shared_ptr<RequestControl> control;
    std::string tenant;
  };
  struct TenantLoad {
    int32_t requests = 0;  // waiting and running
    int64_t tokens = 0;    // waiting
  };
  absl::Status CheckRoom(const Quotas& quotas, const QueuePlace& place, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckTenant(const Quotas& quotas, const QueuePlace& place) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckDeadline(const QueuePlace& place, absl::Time now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Full() const;
  void GiveUp(const QueuePlace& place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Unregister(absl::string_view request_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Written under mu_, read without.
  std::atomic<int32_t> max_requests_;
  std::atomic<int32_t> waiting_{0};
  std::atomic<bool> closed_{false};  // draining or stopped

  mutable std::mutex mu_;
  int64_t max_tokens_ ABSL_GUARDED_BY(mu_);
  std::condition_variable wake_, none_runs_;
  std::vector<std::unique_ptr<Sequence>> inbox_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<RequestControl>> cancelled_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, Registered> requests_ ABSL_GUARDED_BY(mu_);
  absl::flat_hash_map<std::string, TenantLoad> tenants_ ABSL_GUARDED_BY(mu_);  // with requests
  DeadlineLoad due_ ABSL_GUARDED_BY(mu_);
  StepCost cost_ ABSL_GUARDED_BY(mu_);
  int32_t unsettled_ ABSL_GUARDED_BY(mu_) = 0;  // reserved and not settled
  int32_t held_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t waiting_tokens_ ABSL_GUARDED_BY(mu_) = 0;
  bool nudged_ ABSL_GUARDED_BY(mu_) =
      false;  // something but an arrival wants the engine thread's attention
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  absl::Time drain_by_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  absl::Time last_left_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Duration interval_ ABSL_GUARDED_BY(mu_) =
      absl::ZeroDuration();                     // between two that leave a busy queue
  int32_t intervals_ ABSL_GUARDED_BY(mu_) = 0;  // measured, up to kEnoughIntervals
};

}  // namespace skein::engine
