// How a request ends: what is committed, what the client is told, and what the metrics see.

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/clock.h"
#include "engine/engine_loop.h"

namespace skein::engine {
namespace {

absl::Duration Between(absl::Time from, absl::Time to) {
  return from == absl::InfinitePast() || to == absl::InfinitePast() ? absl::ZeroDuration()
                                                                    : to - from;
}

FinishReason ReasonOf(End end) {
  switch (end) {
    case End::kLength:
      return FinishReason::kLength;
    case End::kTime:
      return FinishReason::kTime;
    case End::kCancelled:
      return FinishReason::kCancelled;
    case End::kDrained:
      return FinishReason::kDrained;
    default:
      return FinishReason::kStop;
  }
}

// What the client gets instead of Finished; OK when it gets Finished.
absl::Status ErrorOf(End end, const absl::Status& error) {
  switch (end) {
    case End::kDisconnected:
      return absl::CancelledError("the client went away");
    case End::kDeadline:
      return !error.ok()
                 ? error
                 : absl::DeadlineExceededError("the deadline passed before the request had ended");
    case End::kError:
      return error;
    default:
      return absl::OkStatus();
  }
}

const char* ReusedFrom(const Sequence& sequence) {
  if (!sequence.lease.has_value()) return "conversation";
  if (sequence.lease->prompt != nullptr) return "prompt_state";
  return sequence.lease->key.id.empty() ? "score_prompt" : "conversation";
}

std::string CodeName(const absl::Status& status) { return absl::StatusCodeToString(status.code()); }

}  // namespace

// Sequences that have not parted yet end together.
void EngineLoop::Finish(Sequence* sequence, End end, const absl::Status& error) {
  const std::vector<SequencePtr> followers = std::exchange(sequence->followers, {});
  FinishOne(sequence, end, error);
  for (const SequencePtr& follower : followers) {
    follower->Follow(*sequence);
    follower->consumed = 0;  // it has no state of its own
    FinishOne(follower.get(), end, error);
  }
}

void EngineLoop::FinishOne(Sequence* sequence, End end, const absl::Status& error) {
  if (sequence->score) return FinishScore(sequence, end, error);
  absl::Status status = ErrorOf(end, error);
  const bool shown = end == End::kStop || end == End::kLength || end == End::kTime;
  if (!shown) sequence->DropHeld();
  if (end == End::kTime && sequence->hold_back.has_value()) {
    sequence->hold_back->ReleaseAll(&released_);
    for (TokenEvent& token : released_) p_.shards.Post(sequence->stream, std::move(token));
    released_.clear();
  }
  const auto name = [&] {
    return status.ok() ? std::string(FinishReasonName(end)) : CodeName(status);
  };
  FinishedEvent finished;
  if (sequence->reserves) {
    bool commit = Commits(end, sequence->commit);
    if (commit) {
      const absl::StatusOr<int64_t> version = CommitTurn(sequence, name());
      commit = version.ok();
      if (version.ok()) {
        finished.version = *version;
      } else if (status.ok()) {
        status = version.status();
        end = End::kError;
      }
    }
    finished.committed = commit;
    if (commit && !status.ok()) status = WithCommittedVersion(std::move(status), finished.version);
    if (!commit) p_.store.Release(*sequence->lease, sequence->request_id, name());
  }
  finished.reason = ReasonOf(end);
  finished.stop_match = sequence->stop_match;
  finished.stop_token = sequence->stop_token;
  finished.usage = UsageOf(*sequence);
  const bool in_conversation = sequence->lease.has_value() && !sequence->lease->key.id.empty();
  if (in_conversation && !finished.committed) {
    const Lease& lease = *sequence->lease;
    finished.usage.conversation_tokens = lease.prompt == nullptr ? lease.tokens : 0;
  }
  if (sequence->keep_state && end == End::kLength) finished.state = FinalState(sequence);
  finished.timings = TimingsOf(*sequence);
  Retire(sequence, end, status, finished.usage, finished.timings);
  if (status.ok()) {
    p_.shards.Post(sequence->stream, std::make_unique<FinishedEvent>(std::move(finished)));
  } else {
    p_.shards.Post(sequence->stream, std::move(status));
  }
}

void EngineLoop::FinishScore(Sequence* sequence, End end, const absl::Status& error) {
  absl::Status status = ErrorOf(end, error);
  if (end == End::kCancelled) status = absl::CancelledError("cancelled");
  if (end == End::kDrained) {
    status =
        base::MakeStatus(absl::StatusCode::kUnavailable, "DRAINING", "the server is shutting down");
  }
  const Usage usage = UsageOf(*sequence);
  if (status.ok() && sequence->keep_state) {
    auto prompt = std::make_shared<ScorePrompt>();
    prompt->state = FinalState(sequence);
    if (prompt->state == nullptr && sequence->base_consumed > 0)
      prompt->state = sequence->lease->snapshot;
    prompt->pending.assign(sequence->tokens.begin() + sequence->consumed, sequence->tokens.end());
    p_.shards.Post(sequence->stream, std::shared_ptr<const ScorePrompt>(std::move(prompt)));
  }
  Retire(sequence, end, status, usage, TimingsOf(*sequence));
  if (status.ok()) {
    p_.shards.Post(sequence->stream, usage);
  } else {
    p_.shards.Post(sequence->stream, std::move(status));
  }
}

// The state that the new version starts from: the slot's, or the one kept from before the held
// tokens when the slot's has consumed tokens that are no longer there. Null when it would be the
// base's own.
std::shared_ptr<const StateSnapshot> EngineLoop::FinalState(Sequence* sequence) {
  auto snapshot = std::make_shared<StateSnapshot>();
  snapshot->model_fingerprint = p_.model_fingerprint;
  const int64_t kept = std::min(sequence->unchanged, static_cast<int64_t>(sequence->tokens.size()));
  if (sequence->consumed > kept) {
    SKEIN_CHECK(sequence->held_consumed >= 0 && sequence->held_consumed <= kept);
    if (sequence->held_consumed == 0) return nullptr;
    snapshot->consumed = sequence->base_consumed + sequence->held_consumed;
    snapshot->state = std::move(sequence->held_state);
    return snapshot;
  }
  if (sequence->consumed == 0) return nullptr;
  snapshot->consumed = sequence->base_consumed + sequence->consumed;
  if (sequence->slot < 0) {
    snapshot->state = sequence->origin != nullptr ? *sequence->origin : std::move(sequence->parked);
    return snapshot;
  }
  snapshot->state.resize(pool_->state_floats());
  const absl::Time began = MonotonicNow();
  pool_->CopyOut(sequence->slot, snapshot->state, *stream_);
  stream_->Synchronize();
  sequence->to_host.push_back(MonotonicNow() - began);
  sequence->slot_holds = snapshot;
  return snapshot;
}

absl::StatusOr<int64_t> EngineLoop::CommitTurn(Sequence* sequence, const std::string& reason) {
  const auto begin = sequence->tokens.begin();
  std::vector<int32_t> input(begin + sequence->pending_size, begin + sequence->prompt_size);
  std::vector<int32_t> output(begin + sequence->prompt_size, sequence->tokens.end());
  return p_.store.Commit(*sequence->lease, std::move(input), std::move(output),
                         FinalState(sequence), reason, sequence->request_id);
}

Usage EngineLoop::UsageOf(const Sequence& sequence) const {
  Usage usage;
  usage.prompt_tokens = sequence.prompt_size - sequence.pending_size;
  if (!sequence.score) usage.completion_tokens = sequence.output_size();
  if (sequence.admitted != absl::InfinitePast()) usage.reused_tokens = sequence.base_consumed;
  usage.conversation_tokens = sequence.base_consumed + static_cast<int64_t>(sequence.tokens.size());
  if (sequence.score) {
    // The last token of the continuation is scored, not fed.
    if (!sequence.keep_state) usage.prompt_tokens += 1;
    usage.conversation_tokens = sequence.base_consumed + sequence.pending_size;
  }
  return usage;
}

Timings EngineLoop::TimingsOf(const Sequence& sequence) const {
  const absl::Time now = MonotonicNow();
  Timings timings;
  const bool admitted = sequence.admitted != absl::InfinitePast();
  timings.queue = (admitted ? sequence.admitted : now) - sequence.submitted;
  timings.restore = sequence.restore;
  if (admitted) {
    const absl::Time end = sequence.prefilled != absl::InfinitePast() ? sequence.prefilled : now;
    timings.prefill = end - sequence.admitted - sequence.restore;
  }
  timings.time_to_first_token = Between(sequence.submitted, sequence.first_token);
  timings.decode = Between(sequence.first_token, sequence.last_token);
  const int64_t intervals = sequence.sampled - 1;
  if (intervals > 0) timings.mean_inter_token = timings.decode / intervals;
  return timings;
}

// Frees what the request holds. The last event is posted after it, so that whoever hears it finds
// the slot free, the request id usable and the conversation not busy.
void EngineLoop::Retire(Sequence* sequence, End end, const absl::Status& status, const Usage& usage,
                        const Timings& timings) {
  const absl::Time now = MonotonicNow();
  if (sequence->place.has_value()) p_.store.Leave(*sequence->place);
  sequence->place.reset();
  if (sequence->admitted == absl::InfinitePast() && sequence->index == 0)
    p_.queue.Left(sequence->queued, now);
  if (sequence->slot >= 0) pool_->Release(sequence->slot, sequence->slot_holds);
  sequence->slot = -1;
  if (!sequence->held_state.empty()) spare_states_.push_back(std::move(sequence->held_state));
  admission_.Forget(sequence->ticket);
  if (--sequence->control->live == 0) {
    p_.queue.Ended(sequence->request_id);
    ++unsettled_;
  }
  slots_used_ = pool_->used();
  if (p_.observer == nullptr || (sequence->keep_state && !sequence->score)) return;
  RequestReport report;
  report.code = CodeName(status);
  report.finish_reason = status.ok() ? FinishReasonName(end) : "error";
  report.usage = usage;
  if (sequence->index > 0) report.usage.prompt_tokens = 0;  // taken in once
  report.timings = timings;
  report.total = now - sequence->submitted;
  report.restored_from = sequence->restored_from;
  if (sequence->lease.has_value() && !report.restored_from.empty()) {
    report.missed = MissName(sequence->lease->miss);
  }
  report.reused_from = ReusedFrom(*sequence);
  report.score = sequence->score;
  report.tenant = sequence->tenant;
  report.parkings = sequence->parkings;
  report.to_host = std::move(sequence->to_host);
  report.to_device = std::move(sequence->to_device);
  p_.observer->OnRequestDone(report);
}

void EngineLoop::StopAll() {
  const absl::Status stopping =
      base::MakeStatus(absl::StatusCode::kUnavailable, "DRAINING", "the server has stopped");
  TakeArrivals();
  for (const SequencePtr& sequence : running_) Finish(sequence.get(), End::kError, stopping);
  running_.clear();
  for (const SequencePtr& sequence : in_lines_) Finish(sequence.get(), End::kError, stopping);
  in_lines_.clear();
  for (const auto& [ticket, sequence] : waiting_) Finish(sequence.get(), End::kError, stopping);
  waiting_.clear();
}

}  // namespace skein::engine
