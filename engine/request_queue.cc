#include "engine/request_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/admission.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/clock.h"

namespace skein::engine {
namespace {

using base::MakeStatus;

constexpr absl::Duration kLeastRetry = absl::Milliseconds(100);
constexpr absl::Duration kMostRetry = absl::Seconds(60);
constexpr double kRateMemory = 0.8;
constexpr double kCertainDrain = 0.5;    // part of the measured interval that counts as certain
constexpr int32_t kEnoughIntervals = 5;  // before they say that a deadline cannot be met
constexpr absl::Duration kShown = absl::Milliseconds(1);

absl::Status Draining() {
  return MakeStatus(absl::StatusCode::kUnavailable, "DRAINING",
                    "the server is shutting down; try another one");
}

}  // namespace

absl::Status RequestQueue::Full() const {
  return MakeStatus(absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
                    absl::StrCat("the queue is full (", max_requests_.load(),
                                 " requests wait); try again later"));
}

absl::Status RequestQueue::CheckOpen(const std::string& tenant, const Quotas& quotas) const {
  if (closed_.load(std::memory_order_relaxed)) return Draining();
  if (waiting_.load(std::memory_order_relaxed) >= max_requests_) return Full();
  if (quotas.requests == 0) return absl::OkStatus();
  QueuePlace place;
  place.tenant = tenant;
  std::lock_guard<std::mutex> lock(mu_);
  return CheckTenant({.requests = quotas.requests}, place);
}

absl::Status RequestQueue::CheckTenant(const Quotas& quotas, const QueuePlace& place) const {
  const auto it = tenants_.find(place.tenant);
  const TenantLoad load = it == tenants_.end() ? TenantLoad() : it->second;
  if (quotas.requests > 0 && load.requests >= quotas.requests) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "TENANT_QUOTA",
                      absl::StrCat("your quota of requests at once is used up (", quotas.requests,
                                   "); try again later"));
  }
  if (quotas.queued_tokens > 0 && load.tokens + place.tokens > quotas.queued_tokens) {
    absl::Status status = MakeStatus(
        absl::StatusCode::kResourceExhausted, "TENANT_QUOTA",
        absl::StrCat("your quota of waiting prompt tokens is used up (", load.tokens,
                     " wait, at most ", quotas.queued_tokens, "; this request has ", place.tokens,
                     place.tokens > quotas.queued_tokens ? ")" : "); try again later"));
    return place.tokens > quotas.queued_tokens ? base::WaitingDoesNotHelp(std::move(status))
                                               : status;
  }
  return absl::OkStatus();
}

// Requests with an earlier deadline go first: their prompts must be taken in, or at least as much
// time pass as they took to leave the queue so far.
absl::Status RequestQueue::CheckDeadline(const QueuePlace& place, absl::Time now) const {
  if (place.deadline == absl::InfiniteFuture() || !place.must_end) return absl::OkStatus();
  const DeadlineLoad::Ahead ahead = due_.Before(now, place.deadline);
  absl::Duration wait = LeastService(cost_, ahead.tokens, 0);
  if (intervals_ >= kEnoughIntervals)
    wait = std::max(wait, kCertainDrain * interval_ * ahead.requests);
  const absl::Duration least = wait + LeastService(cost_, place.tokens, place.least_output);
  const absl::Duration left = place.deadline - now;
  if (least <= left) return absl::OkStatus();
  return MakeStatus(
      absl::StatusCode::kDeadlineExceeded, "DEADLINE_UNREACHABLE",
      absl::StrCat("the deadline cannot be met: ", absl::FormatDuration(absl::Trunc(left, kShown)),
                   " are left, and it would take ",
                   absl::FormatDuration(absl::Trunc(least, kShown)), " at the very least (",
                   ahead.requests, " requests with ", ahead.tokens,
                   " prompt tokens are due before; this one has ", place.tokens, ")"));
}

absl::StatusOr<std::shared_ptr<RequestControl>> RequestQueue::Reserve(absl::string_view request_id,
                                                                      const Quotas& quotas,
                                                                      absl::Time now,
                                                                      QueuePlace* place) {
  std::lock_guard<std::mutex> lock(mu_);
  if (stop_ || (closed_ && !place->accepted)) return Draining();
  if (!place->exempt) SKEIN_RETURN_IF_ERROR(CheckRoom(quotas, *place, now));
  auto control = std::make_shared<RequestControl>();
  if (!requests_.try_emplace(std::string(request_id), Registered{control, place->tenant}).second) {
    return MakeStatus(absl::StatusCode::kAlreadyExists, "REQUEST_ID_IN_USE",
                      absl::StrCat("a request with id '", request_id, "' is running"));
  }
  ++waiting_;
  ++unsettled_;
  waiting_tokens_ += place->tokens;
  TenantLoad& tenant = tenants_[place->tenant];
  ++tenant.requests;
  tenant.tokens += place->tokens;
  place->due = due_.Add(now, place->deadline, place->tokens);
  return control;
}

absl::Status RequestQueue::CheckRoom(const Quotas& quotas, const QueuePlace& place,
                                     absl::Time now) const {
  if (place.tokens > max_tokens_) {
    return base::WaitingDoesNotHelp(
        MakeStatus(absl::StatusCode::kResourceExhausted, "QUEUE_TOKENS_FULL",
                   absl::StrCat("the queue takes at most ", max_tokens_,
                                " prompt tokens (limits.queued_tokens), and this request has ",
                                place.tokens, "; send less at once")));
  }
  if (waiting_ >= max_requests_) return Full();
  if (waiting_tokens_ + place.tokens > max_tokens_) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "QUEUE_TOKENS_FULL",
        absl::StrCat("the queue is full (", waiting_tokens_, " prompt tokens wait, at most ",
                     max_tokens_, "; this request has ", place.tokens, "); try again later"));
  }
  SKEIN_RETURN_IF_ERROR(CheckTenant(quotas, place));
  return CheckDeadline(place, now);
}

void RequestQueue::GiveUp(const QueuePlace& place) {
  --waiting_;
  waiting_tokens_ -= place.tokens;
  due_.Remove(place.due, place.tokens);
  tenants_.at(place.tenant).tokens -= place.tokens;
}

void RequestQueue::Unregister(absl::string_view request_id) {
  const auto it = requests_.find(request_id);
  if (it == requests_.end()) return;
  const auto tenant = tenants_.find(it->second.tenant);
  if (--tenant->second.requests == 0) tenants_.erase(tenant);
  requests_.erase(it);
}

void RequestQueue::Push(std::unique_ptr<Sequence> sequence) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    inbox_.push_back(std::move(sequence));
  }
  wake_.notify_one();
}

void RequestQueue::Abandon(absl::string_view request_id, const QueuePlace& place) {
  std::lock_guard<std::mutex> lock(mu_);
  GiveUp(place);
  Unregister(request_id);
  if (--unsettled_ == 0) none_runs_.notify_all();
}

bool RequestQueue::Cancel(absl::string_view request_id, RequestControl::Cancel how) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    const auto it = requests_.find(request_id);
    if (it == requests_.end()) return false;
    int none = RequestControl::kNone;
    // The first one counts.
    if (it->second.control->cancel.compare_exchange_strong(none, how))
      cancelled_.push_back(it->second.control);
    nudged_ = true;
  }
  wake_.notify_one();
  return true;
}

void RequestQueue::Hold() {
  std::lock_guard<std::mutex> lock(mu_);
  ++held_;
}

void RequestQueue::LetGo() {
  std::lock_guard<std::mutex> lock(mu_);
  if (--held_ == 0) none_runs_.notify_all();
}

void RequestQueue::Nudge() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    nudged_ = true;
  }
  wake_.notify_one();
}

void RequestQueue::BeginDrain(absl::Time deadline) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    closed_ = true;
    drain_by_ = std::min(drain_by_, deadline);  // of two callers the more urgent one counts
    nudged_ = true;
  }
  wake_.notify_one();
  none_runs_.notify_all();
}

void RequestQueue::EndDrain() {
  std::lock_guard<std::mutex> lock(mu_);
  closed_ = stop_;
  drain_by_ = absl::InfiniteFuture();
}

void RequestQueue::SetLimits(int32_t max_requests, int64_t max_tokens) {
  std::lock_guard<std::mutex> lock(mu_);
  max_requests_ = max_requests;
  max_tokens_ = max_tokens;
}

void RequestQueue::WaitUntilNoneRuns() {
  std::unique_lock<std::mutex> lock(mu_);
  while (unsettled_ > 0 || held_ > 0) {
    if (unsettled_ > 0 || drain_by_ == absl::InfiniteFuture()) {
      none_runs_.wait(lock);
      continue;
    }
    const absl::Duration left = drain_by_ - MonotonicNow();
    if (left <= absl::ZeroDuration()) return;
    none_runs_.wait_for(lock, absl::ToChronoNanoseconds(left));
  }
}

void RequestQueue::Stop() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = closed_ = true;
  }
  wake_.notify_one();
}

absl::Duration RequestQueue::RetryDelay(absl::Time now) const {
  std::lock_guard<std::mutex> lock(mu_);
  absl::Duration interval = interval_;
  if (last_left_ != absl::InfinitePast()) interval = std::max(interval, now - last_left_);
  const absl::Duration delay =
      interval == absl::ZeroDuration() ? absl::Seconds(1) : interval * (waiting_ + 1);
  return std::clamp(delay, kLeastRetry, kMostRetry);
}

RequestQueue::Counts RequestQueue::counts() const {
  std::lock_guard<std::mutex> lock(mu_);
  return {static_cast<int32_t>(requests_.size()) - waiting_, waiting_, waiting_tokens_};
}

RequestQueue::Orders RequestQueue::Take(absl::Time until,
                                        std::vector<std::unique_ptr<Sequence>>* arrivals,
                                        std::vector<std::shared_ptr<RequestControl>>* cancelled) {
  std::unique_lock<std::mutex> lock(mu_);
  const auto something = [&] { return !inbox_.empty() || nudged_ || stop_; };
  if (until == absl::InfiniteFuture()) {
    wake_.wait(lock, something);
  } else if (until != absl::InfinitePast() && !something()) {
    wake_.wait_for(lock, absl::ToChronoNanoseconds(until - MonotonicNow()), something);
  }
  nudged_ = false;
  for (auto& sequence : inbox_) arrivals->push_back(std::move(sequence));
  inbox_.clear();
  cancelled->insert(cancelled->end(), cancelled_.begin(), cancelled_.end());
  cancelled_.clear();
  return {stop_, drain_by_};
}

void RequestQueue::Publish(const StepCost& cost) {
  std::lock_guard<std::mutex> lock(mu_);
  cost_ = cost;
}

void RequestQueue::Left(const QueuePlace& place, absl::Time now) {
  std::lock_guard<std::mutex> lock(mu_);
  GiveUp(place);
  if (last_left_ != absl::InfinitePast()) {
    const absl::Duration interval = now - last_left_;
    intervals_ = std::min(intervals_ + 1, kEnoughIntervals);
    interval_ = interval_ == absl::ZeroDuration()
                    ? interval
                    : kRateMemory * interval_ + (1 - kRateMemory) * interval;
  }
  // While nobody waits, the time until the next one leaves says nothing about how fast the queue
  // drains.
  last_left_ = waiting_ > 0 ? now : absl::InfinitePast();
}

void RequestQueue::Ended(absl::string_view request_id) {
  std::lock_guard<std::mutex> lock(mu_);
  Unregister(request_id);
}

void RequestQueue::Settled(int32_t n) {
  std::lock_guard<std::mutex> lock(mu_);
  unsettled_ -= n;
  if (unsettled_ == 0) none_runs_.notify_all();
}

}  // namespace skein::engine
