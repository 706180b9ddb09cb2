#include "engine/sequence.h"

#include <algorithm>
#include <limits>
#include <span>
#include <utility>

namespace skein::engine {
namespace {

constexpr int32_t kMostReserved =
    1 << 16;  // tokens of output whose place is made before the first step

}  // namespace

const char* FinishReasonName(End end) {
  switch (end) {
    case End::kStop:
      return "stop";
    case End::kLength:
      return "length";
    case End::kTime:
      return "time";
    case End::kCancelled:
      return "cancelled";
    case End::kDrained:
      return "drained";
    case End::kDisconnected:
    case End::kDeadline:
    case End::kError:
      return "error";
  }
  return "error";
}

bool Commits(End end, CommitMode mode) {
  switch (end) {
    case End::kStop:
    case End::kLength:
    case End::kTime:
      return mode != CommitMode::kNever;
    case End::kCancelled:
    case End::kDrained:
    case End::kDisconnected:
    case End::kDeadline:
      return mode == CommitMode::kKeepPartial;
    case End::kError:
      return false;
  }
  return false;
}

const char* RestoredFrom(const Sequence& sequence) {
  if (!sequence.lease.has_value()) return "none";
  if (sequence.lease->miss != Miss::kNone) return "tokens";
  if (sequence.lease->snapshot == nullptr) return "none";
  return sequence.from_device ? "device" : "host";
}

void Sequence::StartFromLease(const std::vector<int32_t>& separator,
                              const std::vector<int32_t>& input, size_t reserve) {
  const bool open_turn = cursor == TemplateCursor::kOpenTurn && !input.empty();
  if (lease.has_value()) {
    base_consumed = lease->snapshot != nullptr ? lease->snapshot->consumed : 0;
    tokens = std::move(lease->pending);
  }
  pending_size = static_cast<int64_t>(tokens.size());
  tokens.reserve(tokens.size() + separator.size() + input.size() + reserve);
  if (open_turn) tokens.insert(tokens.end(), separator.begin(), separator.end());
  tokens.insert(tokens.end(), input.begin(), input.end());
  prompt_size = static_cast<int64_t>(tokens.size());
}

void Sequence::StartGenerate(GenerateRequest request, const uint32_t* valid_mask, uint64_t seed) {
  tenant = request.tenant;
  commit = request.commit;
  prompt_logprobs = request.want_prompt_logprobs;
  keep_state = request.keep_state;
  stopping = std::move(request.stopping);
  const size_t most = std::min(stopping.max_tokens, kMostReserved);
  StartFromLease(request.separator, request.input, most);
  sampling = SamplingState(request.sampling, stopping, request.want_logprobs, request.top_logprobs,
                           request.sampling.seed.value_or(seed), valid_mask);
  if (request.constraint != nullptr) sampling.Constrain(request.constraint->Clone());
  if (request.sampling.penalty_scope == PenaltyScope::kConversation) {
    std::span<const int32_t> earlier;
    if (lease.has_value()) earlier = lease->all_tokens;
    sampling.CountBefore(earlier, std::span<const int32_t>(tokens).subspan(pending_size));
  }
  if (lease.has_value()) lease->all_tokens = {};
  if (!stopping.stop_strings.empty()) hold_back.emplace(stopping.stop_strings);
}

void Sequence::StartFollower(const Sequence& leader, int32_t number) {
  index = number;
  request_id = leader.request_id;
  tenant = leader.tenant;
  control = leader.control;
  queued = leader.queued;
  queued.tokens = 0;
  commit = leader.commit;
  reserves = leader.reserves;
  stopping = leader.stopping;
  submitted = leader.submitted;
  deadline = leader.deadline;
  sampling = leader.sampling.Clone(SequenceSeed(leader.sampling.seed(), number));
  if (leader.hold_back.has_value()) hold_back.emplace(stopping.stop_strings);
}

void Sequence::Follow(const Sequence& leader) {
  tokens.reserve(leader.tokens.size() + std::min(stopping.max_tokens, kMostReserved));
  tokens = leader.tokens;
  consumed = leader.consumed;
  pending_size = leader.pending_size;
  prompt_size = leader.prompt_size;
  base_consumed = leader.base_consumed;
  admitted = leader.admitted;
  restore = leader.restore;
}

void Sequence::StartScore(ScoreRequest request) {
  score = true;
  tenant = request.tenant;
  keep_state = request.keep_prompt;
  continuation = std::move(request.continuation);
  StartFromLease(request.separator, request.prompt, continuation.size());
  if (!keep_state) tokens.insert(tokens.end(), continuation.begin(), continuation.end() - 1);
  prompt_size = static_cast<int64_t>(tokens.size());
}

int64_t Sequence::prefill_target() const {
  return std::max<int64_t>(0, prompt_size - (ends_with_input() ? 1 : 0));
}

Admission::Request Sequence::Wish() const {
  Admission::Request wish;
  wish.ticket = ticket;
  wish.tenant = queued.tenant;
  wish.arrived = submitted;
  wish.deadline = deadline;
  // One that goes on where another took the input in is looked after as a row that runs.
  if (index == 0) wish.expires = std::min(deadline, submitted + stopping.max_time);
  wish.prompt_tokens = queued.tokens;
  wish.least_output = queued.least_output;
  wish.most_output = queued.most_output;
  return wish;
}

RowDemand Sequence::Demand() const {
  RowDemand demand;
  demand.blocked = paused || slot < 0;
  if (in_shared_part()) {
    demand.remaining = prompt_size - 1 - consumed;
    const int64_t first_wanted = std::max<int64_t>(0, pending_size - 1);
    demand.unscored =
        prompt_logprobs ? std::max<int64_t>(0, first_wanted - consumed) : demand.remaining;
    return demand;
  }
  const int64_t end = output_size() > 0 ? static_cast<int64_t>(tokens.size()) : prefill_target();
  demand.remaining = end - consumed;
  const int64_t first_wanted =
      score ? prompt_size - static_cast<int64_t>(continuation.size()) : end - 1;
  demand.unscored =
      ends_with_input() ? demand.remaining : std::max<int64_t>(0, first_wanted - consumed);
  return demand;
}

void Sequence::AppendNext(int32_t n, std::vector<int32_t>* out) const {
  out->insert(out->end(), tokens.begin() + consumed, tokens.begin() + consumed + n);
}

int32_t Sequence::WantedLogits(int32_t n) const {
  return static_cast<int32_t>(std::max<int64_t>(0, n - Demand().unscored));
}

int32_t Sequence::Target(int64_t position) const {
  const bool last = position + 1 == static_cast<int64_t>(tokens.size());
  return last ? continuation.back() : tokens[position + 1];
}

std::optional<End> Sequence::Accept(const kernels::SampleResult& result, absl::Time now,
                                    const Tokenizer& tokenizer, std::vector<TokenEvent>* released) {
  TokenEvent event;
  event.token = result.token;
  event.logprob = result.logprob;
  event.latency = now - last_token;
  event.top = TopTokens(result.top, result.top + result.num_top);
  const bool may_stop = output_size() >= stopping.min_tokens;
  const bool end_of_document = result.token == kEndOfDocument && !stopping.ignore_eos;
  const std::vector<int32_t>& stops = stopping.stop_tokens;
  if (may_stop &&
      (end_of_document || std::find(stops.begin(), stops.end(), result.token) != stops.end())) {
    stop_token = result.token;
    if (hold_back.has_value()) hold_back->ReleaseAll(released);
    return End::kStop;
  }
  if (output_size() == 0) first_token = now;
  last_token = now;
  tokens.push_back(result.token);
  ++sampled;
  sampling.Accept(result.token);
  if (hold_back.has_value() && may_stop) {
    const auto match = hold_back->Push(std::move(event), tokenizer.Bytes(result.token), released);
    if (match.has_value()) return CutAt(*match, tokenizer, released);
  } else {
    released->push_back(std::move(event));
  }
  if (output_size() < stopping.max_tokens) return std::nullopt;
  if (hold_back.has_value()) hold_back->ReleaseAll(released);
  return End::kLength;
}

End Sequence::CutAt(const HoldBack::Match& match, const Tokenizer& tokenizer,
                    std::vector<TokenEvent>* released) {
  stop_match = stopping.stop_strings[match.stop_string];
  tokens.resize(tokens.size() - match.dropped);
  unchanged = static_cast<int64_t>(tokens.size());
  for (const int32_t token : tokenizer.Encode(match.lead)) {
    tokens.push_back(token);
    TokenEvent event;
    event.token = token;
    event.logprob = std::numeric_limits<float>::quiet_NaN();  // it was never sampled
    released->push_back(std::move(event));
  }
  return End::kStop;
}

void Sequence::DropHeld() {
  if (!hold_back.has_value() || hold_back->held() == 0) return;
  tokens.resize(tokens.size() - hold_back->held());
  unchanged = static_cast<int64_t>(tokens.size());
}

}  // namespace skein::engine
