#include "engine/engine_loop.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/clock.h"

namespace skein::engine {
namespace {

constexpr absl::Duration kHeartbeat = absl::Seconds(1);  // of waiting requests
constexpr absl::Duration kPausePoll =
    absl::Milliseconds(2);  // a sink cannot wake the engine thread

SchedulerOptions StepLimits(const EngineOptions& options) {
  return {options.slots, options.max_step_tokens, options.max_prefill_chunk, options.slots,
          options.target_inter_token};
}

absl::Status SlowReader() {
  return base::MakeStatus(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                          "the client did not read its stream for too long");
}

}  // namespace

absl::StatusOr<std::unique_ptr<EngineLoop>> EngineLoop::Create(const Parts& parts) {
  SKEIN_ASSIGN_OR_RETURN(
      std::unique_ptr<StatePool> pool,
      StatePool::Create(parts.device, parts.options.slots, parts.model.config().state_floats()));
  const size_t threads = std::max(1, parts.device.info().threads);
  kernels::Buffer scratch(parts.device, threads * 2 * parts.model.config().V * sizeof(float));
  if (!scratch) return absl::ResourceExhaustedError("no device memory for the sampler");
  return std::unique_ptr<EngineLoop>(new EngineLoop(parts, std::move(pool), std::move(scratch)));
}

EngineLoop::EngineLoop(const Parts& parts, std::unique_ptr<StatePool> pool, kernels::Buffer scratch)
    : p_(parts),
      pool_(std::move(pool)),
      stream_(parts.device.NewStream()),
      scratch_(std::move(scratch)),
      scheduler_(StepLimits(parts.options)),
      slow_reader_ns_(absl::ToInt64Nanoseconds(parts.options.slow_reader_limit)) {
  const int32_t rows = parts.options.slots;
  const int32_t tokens = parts.options.max_step_tokens;
  running_.reserve(rows);
  demands_.reserve(rows);
  shares_.reserve(rows);
  tokens_.reserve(tokens);
  offsets_.reserve(rows + 1);
  slots_.reserve(rows);
  logits_of_.reserve(rows);
  targets_.reserve(rows);
  sample_rows_.reserve(rows);
  samples_.reserve(rows);
  logprobs_.reserve(rows);
  greedy_.reserve(rows);
  released_.reserve(256);
  generated_.reserve(256);
  spare_states_.reserve(rows);
}

void EngineLoop::Run() {
  while (!orders_.stop) Turn();
  StopAll();
  FlushEvents();
  beat_ns_ = 0;
}

void EngineLoop::Turn() {
  const absl::Time until = SleepUntil();
  slept_ = until > MonotonicNow();
  if (slept_ && running_.empty()) beat_ns_ = oldest_arrival_ns_ = 0;
  orders_ = p_.queue.Take(until, &arrivals_);
  if (orders_.stop) return;
  const absl::Time now = MonotonicNow();
  Beat(now);
  TakeArrivals();
  ClaimConversations();
  EndOverdue(now);
  UpdatePauses(now);
  FillSlots(now);
  TellPositions(now);
  RunStep();
  FlushEvents();
}

// InfinitePast when there is a step to run.
absl::Time EngineLoop::SleepUntil() const {
  if (running_.empty() && waiting_.empty()) return NextInLines(MonotonicNow());
  const bool ready = std::any_of(running_.begin(), running_.end(),
                                 [](const SequencePtr& s) { return !s->paused; });
  if (ready || !waiting_.empty()) return absl::InfinitePast();
  return MonotonicNow() + kPausePoll;
}

void EngineLoop::Beat(absl::Time now) {
  beat_ns_ = absl::ToUnixNanos(now);
  slots_used_ = pool_->used();
  oldest_arrival_ns_ = waiting_.empty() ? 0 : absl::ToUnixNanos(now - scheduler_.oldest(now));
}

absl::Duration EngineLoop::oldest_waiting() const {
  const int64_t ns = oldest_arrival_ns_;
  return ns == 0 ? absl::ZeroDuration() : MonotonicNow() - absl::FromUnixNanos(ns);
}

absl::Duration EngineLoop::since_heartbeat() const {
  const int64_t ns = beat_ns_;
  return ns == 0 ? absl::ZeroDuration() : MonotonicNow() - absl::FromUnixNanos(ns);
}

void EngineLoop::TakeArrivals() {
  for (SequencePtr& sequence : arrivals_) {
    if (sequence->place.has_value()) {
      in_lines_.push_back(std::move(sequence));
    } else {
      Enqueue(std::move(sequence));
    }
  }
  arrivals_.clear();
}

void EngineLoop::FlushEvents() {
  p_.shards.Flush();
  if (unsettled_ > 0) p_.queue.Settled(unsettled_);
  unsettled_ = 0;
}

// ---- who has to go

std::optional<End> EngineLoop::Overdue(const Sequence& sequence, absl::Time now) const {
  const int cancel = sequence.control->cancel.load(std::memory_order_relaxed);
  if (cancel == RequestControl::kByClient) return End::kCancelled;
  if (cancel == RequestControl::kByTransport) return End::kDisconnected;
  if (now >= sequence.deadline) return End::kDeadline;
  if (now - sequence.submitted >= sequence.stopping.max_time) return End::kTime;
  if (now >= orders_.drain_by) return End::kDrained;
  if (sequence.paused && now - sequence.paused_since >= absl::Nanoseconds(slow_reader_ns_.load()))
    return End::kError;
  return std::nullopt;
}

void EngineLoop::EndOverdue(absl::Time now) {
  const auto end_if_overdue = [&](SequencePtr& sequence) {
    const std::optional<End> end = Overdue(*sequence, now);
    if (end.has_value()) {
      Finish(sequence.get(), *end, *end == End::kError ? SlowReader() : absl::OkStatus());
    }
    return end.has_value();
  };
  std::erase_if(running_, end_if_overdue);
  std::erase_if(in_lines_, end_if_overdue);
  for (int64_t i = 0; i < scheduler_.waiting();) {
    const Scheduler::Ticket ticket = scheduler_.waiting_at(i);
    if (!end_if_overdue(waiting_.at(ticket))) {
      ++i;
      continue;
    }
    scheduler_.Remove(ticket);
    waiting_.erase(ticket);
  }
}

void EngineLoop::UpdatePauses(absl::Time now) {
  for (const SequencePtr& sequence : running_) {
    const bool pause = !sequence->stream->Writable();
    if (pause && !sequence->paused) sequence->paused_since = now;
    sequence->paused = pause;
  }
}

// ---- who comes in

void EngineLoop::FillSlots(absl::Time now) {
  while (ResumeOne()) {
  }
  while (scheduler_.waiting() > 0) {
    const int32_t slot = FreeSlot();
    if (slot < 0) return;
    const Scheduler::Ticket ticket = *scheduler_.Pop();
    SequencePtr sequence = std::move(waiting_.at(ticket));
    waiting_.erase(ticket);
    sequence->slot = slot;
    Admit(std::move(sequence), now);
  }
}

// A row that lost its slot while paused comes before those that never ran.
bool EngineLoop::ResumeOne() {
  const auto it = std::find_if(running_.begin(), running_.end(),
                               [](const SequencePtr& s) { return s->slot < 0 && !s->paused; });
  if (it == running_.end()) return false;
  const int32_t slot = FreeSlot();
  if (slot < 0) return false;
  Sequence& sequence = **it;
  sequence.slot = slot;
  const absl::Time began = MonotonicNow();
  pool_->CopyIn(slot, sequence.origin != nullptr ? *sequence.origin : sequence.parked, *stream_);
  stream_->Synchronize();
  sequence.to_device.push_back(MonotonicNow() - began);
  sequence.parked = {};
  sequence.origin = nullptr;
  return true;
}

// A slot for someone who waits; the row that has been paused longest gives its own up.
int32_t EngineLoop::FreeSlot() {
  const int32_t slot = pool_->Acquire();
  if (slot >= 0) return slot;
  Sequence* longest = nullptr;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->paused || sequence->slot < 0) continue;
    if (longest == nullptr || sequence->paused_since < longest->paused_since)
      longest = sequence.get();
  }
  if (longest == nullptr) return -1;
  Park(longest);
  return pool_->Acquire();
}

void EngineLoop::Park(Sequence* sequence) {
  sequence->parked.resize(pool_->state_floats());
  const absl::Time began = MonotonicNow();
  pool_->CopyOut(sequence->slot, sequence->parked, *stream_);
  stream_->Synchronize();
  sequence->to_host.push_back(MonotonicNow() - began);
  ++sequence->parkings;
  pool_->Release(sequence->slot);
  sequence->slot = -1;
}

void EngineLoop::Admit(SequencePtr sequence, absl::Time now) {
  p_.queue.Left(sequence->queued_tokens, now);
  const StateSnapshot* snapshot =
      sequence->lease.has_value() ? sequence->lease->snapshot.get() : nullptr;
  if (snapshot != nullptr) {
    pool_->CopyIn(sequence->slot, snapshot->state, *stream_);
  } else {
    pool_->Zero(sequence->slot, *stream_);
  }
  stream_->Synchronize();
  sequence->admitted = now;
  sequence->restore = MonotonicNow() - now;
  if (!sequence->score) TellStarted(*sequence);
  for (const SequencePtr& follower : sequence->followers) {
    follower->base_consumed = sequence->base_consumed;
    TellStarted(*follower);
  }
  if (sequence->prompt_logprobs && sequence->prompt_size > 0 && sequence->base_consumed == 0 &&
      sequence->pending_size == 0) {
    constexpr float kNone = std::numeric_limits<float>::quiet_NaN();
    p_.shards.Post(sequence->stream, PromptLogprobsEvent{0, {{sequence->tokens[0], kNone}}});
  }
  if (sequence->prefill_target() == 0) {  // max_tokens 0 and at most one token: it stays pending
    Finish(sequence.get(), End::kLength, absl::OkStatus());
    return;
  }
  sequence->paused = !sequence->stream->Writable();
  sequence->paused_since = now;
  Sequence* const admitted = sequence.get();
  running_.push_back(std::move(sequence));
  if (!admitted->in_shared_part()) Part(admitted);
}

void EngineLoop::TellStarted(const Sequence& sequence) {
  StartedEvent started;
  if (sequence.lease.has_value()) {
    const Lease& lease = *sequence.lease;
    if (sequence.reserves) started.conversation_id = lease.key.id;
    started.version = lease.base_version;
    started.created = lease.created;
  }
  started.tokens_reused = sequence.base_consumed;
  started.restored_from = RestoredFrom(sequence);
  started.seed = sequence.sampling.seed();
  p_.shards.Post(sequence.stream, std::make_unique<StartedEvent>(std::move(started)));
}

void EngineLoop::TellPositions(absl::Time now) {
  for (int64_t i = 0; i < scheduler_.waiting(); ++i) {
    Sequence& sequence = *waiting_.at(scheduler_.waiting_at(i));
    if (sequence.score || now - sequence.last_position < kHeartbeat) continue;
    sequence.last_position = now;
    p_.shards.Post(sequence.stream, QueuedEvent{i});
  }
  for (const SequencePtr& sequence : in_lines_) {
    if (now - sequence->last_position < kHeartbeat) continue;
    sequence->last_position = now;
    p_.shards.Post(sequence->stream, QueuedEvent{p_.store.Ahead(*sequence->place)});
  }
}

}  // namespace skein::engine
