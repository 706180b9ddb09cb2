#include "engine/request_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/clock.h"

namespace skein::engine {
namespace {

using base::MakeStatus;

constexpr absl::Duration kLeastRetry = absl::Milliseconds(100);
constexpr absl::Duration kMostRetry = absl::Seconds(60);
constexpr double kRateMemory = 0.8;

}  // namespace

absl::StatusOr<std::shared_ptr<RequestControl>> RequestQueue::Reserve(absl::string_view request_id,
                                                                      int64_t tokens) {
  std::lock_guard<std::mutex> lock(mu_);
  if (stop_ || draining_) {
    return MakeStatus(absl::StatusCode::kUnavailable, "DRAINING",
                      "the server is shutting down; try another one");
  }
  if (waiting_ >= max_requests_) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "QUEUE_FULL",
        absl::StrCat("the queue is full (", max_requests_, " requests wait); try again later"));
  }
  if (waiting_tokens_ + tokens > max_tokens_) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted, "QUEUE_TOKENS_FULL",
        absl::StrCat("the queue is full (", waiting_tokens_, " prompt tokens wait, at most ",
                     max_tokens_, "; this request has ", tokens, "); try again later"));
  }
  auto control = std::make_shared<RequestControl>();
  if (!requests_.try_emplace(std::string(request_id), control).second) {
    return MakeStatus(absl::StatusCode::kAlreadyExists, "REQUEST_ID_IN_USE",
                      absl::StrCat("a request with id '", request_id, "' is running"));
  }
  ++waiting_;
  ++unsettled_;
  waiting_tokens_ += tokens;
  return control;
}

void RequestQueue::Push(std::unique_ptr<Sequence> sequence) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    inbox_.push_back(std::move(sequence));
  }
  wake_.notify_one();
}

void RequestQueue::Abandon(absl::string_view request_id, int64_t tokens) {
  std::lock_guard<std::mutex> lock(mu_);
  --waiting_;
  waiting_tokens_ -= tokens;
  requests_.erase(request_id);
  if (--unsettled_ == 0) none_runs_.notify_all();
}

bool RequestQueue::Cancel(absl::string_view request_id, RequestControl::Cancel how) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    const auto it = requests_.find(request_id);
    if (it == requests_.end()) return false;
    int none = RequestControl::kNone;
    it->second->cancel.compare_exchange_strong(none, how);  // the first one counts
    nudged_ = true;
  }
  wake_.notify_one();
  return true;
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
    draining_ = true;
    drain_by_ = std::min(drain_by_, deadline);  // of two callers the more urgent one counts
    nudged_ = true;
  }
  wake_.notify_one();
}

void RequestQueue::EndDrain() {
  std::lock_guard<std::mutex> lock(mu_);
  draining_ = false;
  drain_by_ = absl::InfiniteFuture();
}

void RequestQueue::SetLimits(int32_t max_requests, int64_t max_tokens) {
  std::lock_guard<std::mutex> lock(mu_);
  max_requests_ = max_requests;
  max_tokens_ = max_tokens;
}

void RequestQueue::WaitUntilNoneRuns() {
  std::unique_lock<std::mutex> lock(mu_);
  none_runs_.wait(lock, [&] { return unsettled_ == 0; });
}

void RequestQueue::Stop() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stop_ = true;
  }
  wake_.notify_one();
}

bool RequestQueue::draining() const {
  std::lock_guard<std::mutex> lock(mu_);
  return draining_ || stop_;
}

absl::Duration RequestQueue::RetryDelay() const {
  std::lock_guard<std::mutex> lock(mu_);
  const absl::Duration delay =
      interval_ == absl::ZeroDuration() ? absl::Seconds(1) : interval_ * (waiting_ + 1);
  return std::clamp(delay, kLeastRetry, kMostRetry);
}

RequestQueue::Counts RequestQueue::counts() const {
  std::lock_guard<std::mutex> lock(mu_);
  return {static_cast<int32_t>(requests_.size()) - waiting_, waiting_, waiting_tokens_};
}

RequestQueue::Orders RequestQueue::Take(absl::Time until,
                                        std::vector<std::unique_ptr<Sequence>>* arrivals) {
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
  return {stop_, drain_by_};
}

void RequestQueue::Left(int64_t tokens, absl::Time now) {
  std::lock_guard<std::mutex> lock(mu_);
  --waiting_;
  waiting_tokens_ -= tokens;
  if (last_left_ != absl::InfinitePast()) {
    const absl::Duration interval = now - last_left_;
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
  requests_.erase(request_id);
}

void RequestQueue::Settled(int32_t n) {
  std::lock_guard<std::mutex> lock(mu_);
  unsettled_ -= n;
  if (unsettled_ == 0) none_runs_.notify_all();
}

}  // namespace skein::engine
