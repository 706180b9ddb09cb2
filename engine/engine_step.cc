// One step of the model: which rows, their tokens, the logits' use, and what each row makes of
// them.

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/status.h"
#include "engine/clock.h"
#include "engine/engine_loop.h"

namespace skein::engine {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(100);
absl::Status NonFinite(int64_t position) {
  return base::MakeStatus(
      absl::StatusCode::kInternal, "NON_FINITE_LOGITS",
      absl::StrCat("the model's logits for this request are not finite at token ", position));
}

absl::Status NothingAllowed() {
  return base::MakeStatus(absl::StatusCode::kFailedPrecondition, "CONSTRAINT_ALLOWS_NOTHING",
                          "the constraint allows no token after what was sampled");
}

}  // namespace

void EngineLoop::RunStep() {
  demands_.clear();
  for (const SequencePtr& sequence : running_) demands_.push_back(sequence->Demand());
  scheduler_.Plan(demands_, &shares_);
  if (shares_.empty()) return;
  const absl::Time began = MonotonicNow();
  BuildBatch();
  SampleAndScore(p_.model.Step({tokens_, offsets_, slots_, logits_of_}, pool_->base(), *stream_));
  stream_->Synchronize();
  const absl::Time ended = MonotonicNow();
  scheduler_.Learn(decode_rows_, prefill_tokens_, ended - began);
  p_.queue.Publish(scheduler_.cost());
  const int32_t generated = static_cast<int32_t>(samples_.size());
  TakeResults(ended);
  std::erase_if(running_, [](const SequencePtr& s) { return s->done; });
  Report(began, ended, generated);
}

// Looks for the tenant among the few that are computed at a time; forgets them when they become
// many.
void EngineLoop::CountGenerated(const Sequence& sequence) {
  constexpr size_t kMostTenants = 256;
  for (TenantTokens& entry : generated_) {
    if (entry.tenant != sequence.tenant) continue;
    ++entry.tokens;
    return;
  }
  if (generated_.size() >= kMostTenants)
    std::erase_if(generated_, [](const TenantTokens& entry) { return entry.tokens == 0; });
  generated_.push_back({sequence.tenant, 1});
}

void EngineLoop::BuildBatch() {
  // Sampling and scoring each want their logits side by side.
  std::partition(shares_.begin(), shares_.end(),
                 [&](const StepShare& s) { return !running_[s.row]->scores_next(); });
  tokens_.clear();
  offsets_.assign(1, 0);
  slots_.clear();
  logits_of_.clear();
  targets_.clear();
  sample_rows_.clear();
  decode_rows_ = prefill_rows_ = prefill_tokens_ = 0;
  for (TenantTokens& entry : generated_) entry.tokens = 0;
  inter_token_.clear();
  for (const StepShare& share : shares_) AddToBatch(share);
}

void EngineLoop::AddToBatch(const StepShare& share) {
  const Sequence& sequence = *running_[share.row];
  if (share.tokens == 1 && !sequence.prefilling()) {
    ++decode_rows_;
  } else {
    ++prefill_rows_;
    prefill_tokens_ += share.tokens;
  }
  sequence.AppendNext(share.tokens, &tokens_);
  const int32_t end = static_cast<int32_t>(tokens_.size());
  offsets_.push_back(end);
  slots_.push_back(sequence.slot);
  const int32_t wanted = sequence.WantedLogits(share.tokens);
  for (int32_t i = end - wanted; i < end; ++i) logits_of_.push_back(i);
  if (sequence.scores_next()) {
    const int64_t next = sequence.consumed + share.tokens;
    for (int64_t i = next - wanted; i < next; ++i) targets_.push_back(sequence.Target(i));
  } else if (wanted == 1) {
    sequence.sampling.Fill(&sample_rows_.emplace_back());
  }
}

void EngineLoop::SampleAndScore(const float* logits) {
  const int32_t V = p_.model.config().V;
  samples_.resize(sample_rows_.size());
  if (!sample_rows_.empty()) {
    kernels::SampleParams sample;
    sample.logits = logits;
    sample.n = static_cast<int32_t>(sample_rows_.size());
    sample.V = V;
    sample.vocab = std::min(V, p_.tokenizer.vocab_size());
    sample.rows = sample_rows_.data();
    sample.results = samples_.data();
    sample.scratch = scratch_.as<float>();
    p_.device.ops().sample(sample, *stream_);
  }
  logprobs_.resize(targets_.size());
  greedy_.resize(targets_.size());
  if (targets_.empty()) return;
  kernels::ScoreParams score;
  score.logits = logits + sample_rows_.size() * V;
  score.n = static_cast<int32_t>(targets_.size());
  score.V = V;
  score.target = targets_.data();
  score.logprob = logprobs_.data();
  score.greedy = greedy_.data();
  p_.device.ops().score(score, *stream_);
}

void EngineLoop::TakeResults(absl::Time now) {
  size_t sampled = 0, scored = 0;
  for (const StepShare& share : shares_) {
    Sequence* sequence = running_[share.row].get();
    const int32_t wanted = sequence->WantedLogits(share.tokens);
    const bool decode = share.tokens == 1 && !sequence->prefilling();
    admission_.Charge(sequence->ticket, decode ? 0 : share.tokens, decode ? 1 : 0);
    const bool scores = sequence->scores_next();
    sequence->consumed += share.tokens;
    const int64_t first = sequence->consumed - wanted;
    if (scores && !sequence->score) TakePromptScores(sequence, first, wanted, scored);
    if (!sequence->done && sequence->prefilled == absl::InfinitePast()) AfterPrefill(sequence, now);
    if (sequence->done) {  // it wants nothing more
    } else if (sequence->score) {
      TakeScores(sequence, first, wanted, scored);
    } else if (!scores && wanted == 1) {
      CountGenerated(*sequence);
      TakeSample(sequence, samples_[sampled], now);
    }
    (scores ? scored : sampled) += wanted;
  }
}

void EngineLoop::AfterPrefill(Sequence* sequence, absl::Time now) {
  const int64_t total = sequence->prefill_target();
  const bool complete = sequence->consumed >= total;
  const bool long_prompt = !complete || sequence->last_progress != absl::InfinitePast();
  if (!sequence->score && sequence->index == 0 && long_prompt &&
      (complete || now - sequence->last_progress >= kProgressInterval)) {
    sequence->last_progress = now;
    p_.shards.Post(sequence->stream, ProgressEvent{sequence->consumed, total});
  }
  if (complete) sequence->prefilled = sequence->last_token = now;
  const size_t before = running_.size();
  if (!sequence->in_shared_part()) Part(sequence);
  if (!complete || !sequence->ends_with_input()) return;
  EndRow(sequence, End::kLength, absl::OkStatus());
  for (size_t row = before; row < running_.size(); ++row)
    EndRow(running_[row].get(), End::kLength, absl::OkStatus());
}

// The input is taken in but for its last token: from here on each sequence goes its own way. Those
// that find no free slot wait for one with a copy on the host.
void EngineLoop::Part(Sequence* leader) {
  if (leader->followers.empty()) return;
  const absl::Time now = MonotonicNow();
  std::shared_ptr<const std::vector<float>> origin;
  for (SequencePtr& moved : std::exchange(leader->followers, {})) {
    running_.push_back(std::move(moved));
    Sequence* follower = running_.back().get();
    follower->Follow(*leader);
    follower->ticket = next_ticket_++;
    admission_.Enqueue(follower->Wish());
    follower->slot = pool_->Acquire();
    if (follower->slot >= 0) {
      admission_.Take(follower->ticket, now);
      pool_->Copy(follower->slot, leader->slot, *stream_);
      continue;
    }
    if (origin == nullptr) {
      std::vector<float> state(pool_->state_floats());
      pool_->CopyOut(leader->slot, state, *stream_);
      stream_->Synchronize();
      origin = std::make_shared<const std::vector<float>>(std::move(state));
    }
    follower->origin = origin;
  }
  stream_->Synchronize();
}

// Scores of the input: tokens[position + 1] and on.
void EngineLoop::TakePromptScores(Sequence* sequence, int64_t position, int32_t n, size_t at) {
  if (n == 0) return;
  PromptLogprobsEvent event;
  event.first = position + 1 - sequence->pending_size;
  for (int32_t i = 0; i < n; ++i) {
    if (!std::isfinite(logprobs_[at + i])) {
      EndRow(sequence, End::kError, NonFinite(sequence->base_consumed + position + 1 + i));
      return;
    }
    event.tokens.push_back({targets_[at + i], logprobs_[at + i]});
  }
  p_.shards.Post(sequence->stream, std::move(event));
}

void EngineLoop::TakeSample(Sequence* sequence, const kernels::SampleResult& result,
                            absl::Time now) {
  if (!sequence->sampling.some_allowed()) {
    EndRow(sequence, End::kError, NothingAllowed());
    return;
  }
  if (result.token < 0) {
    EndRow(sequence, End::kError, NonFinite(sequence->base_consumed + sequence->consumed));
    return;
  }
  const bool first = sequence->output_size() == 0;
  const int64_t sampled = sequence->sampled;
  const absl::Time last = sequence->last_token;
  const std::optional<End> end = sequence->Accept(result, now, p_.tokenizer, &released_);
  if (!first && sequence->sampled > sampled) inter_token_.push_back(now - last);
  for (TokenEvent& token : released_) p_.shards.Post(sequence->stream, std::move(token));
  released_.clear();
  if (end.has_value()) {
    EndRow(sequence, *end, absl::OkStatus());
  } else if (sequence->hold_back.has_value()) {
    KeepHeldState(sequence);
  }
}

void EngineLoop::TakeScores(Sequence* sequence, int64_t position, int32_t n, size_t at) {
  ScoreEvent event;
  for (int32_t i = 0; i < n; ++i) {
    if (!std::isfinite(logprobs_[at + i])) {
      EndRow(sequence, End::kError, NonFinite(sequence->base_consumed + position + 1 + i));
      return;
    }
    event.logprobs.push_back(logprobs_[at + i]);
    event.greedy.push_back(greedy_[at + i]);
  }
  if (n > 0) p_.shards.Post(sequence->stream, std::move(event));
  if (sequence->consumed == sequence->prompt_size) EndRow(sequence, End::kStop, absl::OkStatus());
}

void EngineLoop::EndRow(Sequence* sequence, End end, const absl::Status& error) {
  sequence->done = true;
  Finish(sequence, end, error);
}

// While tokens are held back, the state from before the first of them is kept: it is put back when
// they turn out to be a stop string.
void EngineLoop::KeepHeldState(Sequence* sequence) {
  if (sequence->hold_back->held() == 0) {
    if (sequence->held_consumed < 0) return;
    sequence->held_consumed = -1;
    spare_states_.push_back(std::move(sequence->held_state));
    sequence->held_state = {};
    return;
  }
  if (sequence->held_consumed >= 0) return;
  if (!spare_states_.empty()) {
    sequence->held_state = std::move(spare_states_.back());
    spare_states_.pop_back();
  }
  sequence->held_state.resize(pool_->state_floats());
  pool_->CopyOut(sequence->slot, sequence->held_state, *stream_);
  stream_->Synchronize();
  sequence->held_consumed = sequence->consumed;
}

void EngineLoop::Report(absl::Time began, absl::Time ended, int32_t generated) {
  StepReport report;
  report.decode_rows = decode_rows_;
  report.prefill_rows = prefill_rows_;
  report.tokens = static_cast<int32_t>(tokens_.size());
  report.prefill_tokens = prefill_tokens_;
  report.generated_tokens = generated;
  report.generated = generated_;
  report.inter_token = inter_token_;
  report.duration = ended - began;
  if (!slept_ && last_step_ended_ != absl::InfinitePast()) report.gap = began - last_step_ended_;
  last_step_ended_ = ended;
  if (p_.observer != nullptr) p_.observer->OnStep(report);
}

}  // namespace skein::engine
