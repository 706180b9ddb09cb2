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
// How often the positions of all who wait are worked out, at most.
constexpr absl::Duration kPositions = absl::Milliseconds(250);
constexpr absl::Duration kNewPositions = absl::Milliseconds(20);
constexpr size_t kFewWaiting = 64;
// A reader is not given up for being slow before this, however many there are.
constexpr absl::Duration kLeastPatience = absl::Seconds(1);
constexpr absl::Duration kPausePoll =
    absl::Milliseconds(2);  // a sink cannot wake the engine thread

SchedulerOptions StepLimits(const EngineOptions& options) {
  return {options.slots, options.max_step_tokens, options.max_prefill_chunk, options.slots,
          options.target_inter_token};
}

AdmissionOptions WhoRuns(const EngineOptions& options) {
  AdmissionOptions admission;
  admission.slots = options.slots;
  admission.max_parked = options.max_parked > 0 ? options.max_parked : 2 * options.slots;
  return admission;
}

absl::Status Hopeless() {
  return base::MakeStatus(
      absl::StatusCode::kDeadlineExceeded, "DEADLINE_UNREACHABLE",
      "the deadline cannot be met any more: the request waited for too long for a slot");
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
      admission_(WhoRuns(parts.options)),
      slow_reader_ns_(absl::ToInt64Nanoseconds(parts.options.slow_reader_limit)) {
  const int32_t rows = parts.options.slots;
  const int32_t tokens = parts.options.max_step_tokens;
  running_.reserve(3 * rows);
  demands_.reserve(3 * rows);
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
  inter_token_.reserve(p_.options.slots);
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
  orders_ = p_.queue.Take(until, &arrivals_, &cancelled_);
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
absl::Time EngineLoop::SleepUntil() {
  if (running_.empty() && waiting_.empty()) return NextInLines(MonotonicNow());
  const bool ready = std::any_of(running_.begin(), running_.end(),
                                 [](const SequencePtr& s) { return !s->paused && s->slot >= 0; });
  const bool room = pool_->used() < pool_->slots();
  if (ready || (room && admission_.waiting() > 0)) return absl::InfinitePast();
  return MonotonicNow() + kPausePoll;
}

void EngineLoop::Beat(absl::Time now) {
  beat_ns_ = absl::ToUnixNanos(now);
  slots_used_ = pool_->used();
  oldest_arrival_ns_ = waiting_.empty() ? 0 : absl::ToUnixNanos(now - admission_.oldest(now));
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
  // Not one that has caught up, or was turned away, while this thread was held up.
  if (sequence.paused && !sequence.stream->Writable() &&
      now - sequence.paused_since >= absl::Nanoseconds(slow_reader_ns_.load()))
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
  for (const auto& control : cancelled_) EndWaiting(control->ticket, now, absl::OkStatus());
  cancelled_.clear();
  while (const auto overdue = admission_.NextOverdue(now, scheduler_.cost()))
    EndWaiting(overdue->ticket, now, overdue->expired ? absl::OkStatus() : Hopeless());
  if (now < orders_.drain_by || waiting_.empty()) return;
  admission_.Order(&order_);
  for (const Admission::Ticket ticket : order_) EndWaiting(ticket, now, absl::OkStatus());
}

// Ends one that waits for its first slot, if it is overdue or hopeless.
void EngineLoop::EndWaiting(Admission::Ticket ticket, absl::Time now,
                            const absl::Status& hopeless) {
  const auto it = waiting_.find(ticket);
  if (it == waiting_.end()) return;
  const SequencePtr& sequence = it->second;
  std::optional<End> end = Overdue(*sequence, now);
  if (!end.has_value() && hopeless.ok()) return;
  Finish(sequence.get(), end.value_or(End::kDeadline),
         end.has_value() ? absl::OkStatus() : hopeless);
  waiting_.erase(it);
}

void EngineLoop::UpdatePauses(absl::Time now) {
  for (const SequencePtr& sequence : running_) {
    const bool pause = !sequence->stream->Writable();
    if (pause == sequence->paused) continue;
    if (pause) sequence->paused_since = now;
    sequence->paused = pause;
    if (sequence->slot >= 0) continue;
    if (pause) {
      admission_.Park(sequence->ticket, now);
    } else {
      admission_.Unpark(sequence->ticket, now);
    }
  }
}

// ---- who comes in

void EngineLoop::FillSlots(absl::Time now) {
  while (admission_.waiting() > 0) {
    int32_t slot = FreeSlot(now);
    if (slot >= 0) {
      Seat(*admission_.Pop(now), slot, now);
    } else if (const auto swap = admission_.Preempt(now, scheduler_.cost())) {
      Park(Row(swap->out));
      Seat(swap->in, pool_->Acquire(), now);
    } else {
      return;
    }
  }
}

void EngineLoop::Seat(Admission::Ticket ticket, int32_t slot, absl::Time now) {
  const auto it = waiting_.find(ticket);
  if (it == waiting_.end()) {
    Sequence* sequence = Row(ticket);
    sequence->slot = slot;
    Resume(sequence);
    return;
  }
  SequencePtr sequence = std::move(it->second);
  waiting_.erase(it);
  sequence->slot = slot;
  Admit(std::move(sequence), now);
}

Sequence* EngineLoop::Row(Admission::Ticket ticket) {
  const auto it = std::find_if(running_.begin(), running_.end(),
                               [&](const SequencePtr& s) { return s->ticket == ticket; });
  SKEIN_CHECK(it != running_.end());
  return it->get();
}

// A slot for someone who waits; the row that has been paused longest gives its own up. -1: none.
int32_t EngineLoop::FreeSlot(absl::Time now) {
  const int32_t slot = pool_->Acquire();
  if (slot >= 0) return slot;
  Sequence* longest = nullptr;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->paused || sequence->slot < 0) continue;
    if (longest == nullptr || sequence->paused_since < longest->paused_since)
      longest = sequence.get();
  }
  if (longest == nullptr) return -1;
  if (admission_.parked() >= WhoRuns(p_.options).max_parked && !DropSlowest(now)) return -1;
  const int32_t freed = pool_->Acquire();  // the slowest one may have held a slot
  if (freed >= 0) return freed;
  admission_.Park(longest->ticket, now);
  Park(longest);
  return pool_->Acquire();
}

// Ends the row whose reader has been slow for longest. False: none has been for long.
bool EngineLoop::DropSlowest(absl::Time now) {
  auto slowest = running_.end();
  for (auto it = running_.begin(); it != running_.end(); ++it) {
    if (!(*it)->paused || now - (*it)->paused_since < kLeastPatience) continue;
    if (slowest == running_.end() || (*it)->paused_since < (*slowest)->paused_since) slowest = it;
  }
  if (slowest == running_.end()) return false;
  Finish(slowest->get(), End::kError, SlowReader());
  running_.erase(slowest);
  return true;
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

void EngineLoop::Resume(Sequence* sequence) {
  const absl::Time began = MonotonicNow();
  pool_->CopyIn(sequence->slot, sequence->origin != nullptr ? *sequence->origin : sequence->parked,
                *stream_);
  stream_->Synchronize();
  sequence->to_device.push_back(MonotonicNow() - began);
  sequence->parked = {};
  sequence->origin = nullptr;
}

void EngineLoop::Admit(SequencePtr sequence, absl::Time now) {
  p_.queue.Left(sequence->queued, now);
  const StateSnapshot* snapshot =
      sequence->lease.has_value() ? sequence->lease->snapshot.get() : nullptr;
  const int32_t warm = snapshot == nullptr ? -1 : pool_->FindHolding(sequence->slot, *snapshot);
  if (warm >= 0) {
    sequence->slot = warm;
    sequence->from_device = true;
  } else if (snapshot != nullptr) {
    pool_->CopyIn(sequence->slot, snapshot->state, *stream_);
  } else {
    pool_->Zero(sequence->slot, *stream_);
  }
  stream_->Synchronize();
  sequence->admitted = now;
  sequence->restore = MonotonicNow() - now;
  sequence->restored_from = RestoredFrom(*sequence);
  if (!sequence->score) TellStarted(*sequence);
  for (const SequencePtr& follower : sequence->followers) {
    follower->base_consumed = sequence->base_consumed;
    follower->restored_from = RestoredFrom(*follower);
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
  // The slot has it now; the store alone decides how long the copy is kept.
  if (sequence->lease.has_value()) sequence->lease->snapshot = nullptr;
  for (const SequencePtr& follower : sequence->followers) {
    if (follower->lease.has_value()) follower->lease->snapshot = nullptr;
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
  started.restored_from = sequence.restored_from;
  started.seed = sequence.sampling.seed();
  p_.shards.Post(sequence.stream, std::make_unique<StartedEvent>(std::move(started)));
}

void EngineLoop::TellPositions(absl::Time now) {
  TellPlacesInLines(now);
  if (waiting_.empty()) return;
  const bool soon = waiting_.size() <= kFewWaiting || now - positions_told_ >= kNewPositions;
  if (!(untold_ && soon) && now - positions_told_ < kPositions) return;
  untold_ = false;
  positions_told_ = now;
  admission_.Order(&order_);
  for (size_t position = 0; position < order_.size(); ++position) {
    const auto it = waiting_.find(order_[position]);
    if (it == waiting_.end()) continue;  // it has run before and hears tokens
    Sequence& sequence = *it->second;
    if (sequence.score || now - sequence.last_position < kHeartbeat) continue;
    sequence.last_position = now;
    p_.shards.Post(sequence.stream, QueuedEvent{static_cast<int64_t>(position)});
  }
}

}  // namespace skein::engine
