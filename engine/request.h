#pragma once
// What the engine is asked and what it tells: plain data, no gRPC, no device.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/time/time.h"
#include "engine/constraint.h"
#include "engine/store/types.h"
#include "kernels/ops.h"

namespace skein::engine {

// Which tokens penalties count: those that the request samples, or the whole conversation's too.
enum class PenaltyScope { kRequest, kConversation };

struct SamplingOptions {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;
  float min_p = 0.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float penalty_decay = 1.0f;  // counts are multiplied by it at each token
  float repetition_penalty = 1.0f;
  PenaltyScope penalty_scope = PenaltyScope::kRequest;
  bool top_p_before_temperature = false;
  std::optional<uint64_t> seed;  // unset: drawn by the engine and told in Started
  std::vector<kernels::TokenValue> logit_bias;
  std::vector<int32_t> banned_tokens;
};

struct StoppingOptions {
  int32_t max_tokens = 256;  // 0: only take the input in
  int32_t min_tokens = 0;    // end-of-document, stop ids and stop strings do not end it before
  absl::Duration max_time = absl::InfiniteDuration();  // from submission; ends with kTime
  std::vector<std::string> stop_strings;
  std::vector<int32_t> stop_tokens;
  bool ignore_eos = false;  // else id 0 stops
};

enum class CommitMode { kOnSuccess, kKeepPartial, kNever };

enum class FinishReason { kStop, kLength, kTime, kCancelled, kDrained };

struct GenerateRequest {
  std::string request_id;  // never empty: the server makes one when the client did not
  std::string tenant;      // whose conversations it sees; empty: the one without authentication
  std::string conversation_id;  // empty: stateless
  bool create_if_missing = false;
  std::optional<int64_t> base_version;      // continue from this kept version instead of the head
  std::optional<int64_t> expected_version;  // fail unless the head is this one
  CommitMode commit = CommitMode::kOnSuccess;
  bool wait_if_busy = false;  // for the conversation, in its line; else ABORTED
  OnModelMismatch on_model_mismatch = OnModelMismatch::kFail;
  std::optional<absl::Duration> ttl;  // of the conversation, from the commit on; unset: as it was
  Quotas quotas;                      // of the tenant
  // Appended to the conversation. `separator` goes before it when the conversation's turn is open
  // (chat messages); empty for plain text and token ids.
  std::vector<int32_t> input;
  std::vector<int32_t> separator;
  SamplingOptions sampling;
  StoppingOptions stopping;
  bool want_logprobs = false;
  int32_t top_logprobs = 0;           // 0..kernels::kMaxTopLogprobs
  bool want_prompt_logprobs = false;  // of the input's tokens; see PromptLogprobsEvent
  // More than 1: the input is taken in once, then this many sequences sample on their own. Index i
  // samples what a request of its own with SequenceSeed(seed, i) would. The conversation stays as
  // it was: each index becomes a new one.
  int32_t num_sequences = 1;
  // Null: none. Each sequence works on a clone.
  std::shared_ptr<const Constraint> constraint;
  // What an empty conversation, or a stateless request, begins with. Of this engine's model.
  std::shared_ptr<const PromptState> prompt;
  // The server's own, to compute a prompt state: no limit of the queue refuses it, it is no request
  // to observers, and FinishedEvent brings the state. Stateless, with max_tokens 0.
  bool keep_state = false;
  absl::Time deadline = absl::InfiniteFuture();  // the gRPC deadline; ends with DEADLINE_EXCEEDED
};

// Documented in the API, so that a client can repeat one of several sequences.
inline uint64_t SequenceSeed(uint64_t seed, int32_t index) {
  return seed + static_cast<uint64_t>(index);
}

// Where a prompt ends that several continuations are scored after. Immutable; shared by them.
struct ScorePrompt {
  // Null: nothing has been consumed.
  std::shared_ptr<const StateSnapshot> state;
  std::vector<int32_t> pending;  // what the state has not consumed; at least one token
};

struct ScoreRequest {
  std::string request_id;
  std::string tenant;
  std::string conversation_id;  // empty: from nothing; never changed by scoring
  std::optional<int64_t> base_version;
  std::vector<int32_t> prompt;
  std::vector<int32_t> separator;     // as above
  std::vector<int32_t> continuation;  // at least one token; each is scored given all before it
  // In place of conversation and prompt.
  std::shared_ptr<const ScorePrompt> after;
  // No continuation: the prompt is taken in and given to the sink, once for all that come after it.
  bool keep_prompt = false;
  bool accepted = false;  // goes on with a call that was accepted: a drain does not refuse it
  bool exempt = false;    // nor a full queue
  absl::Time deadline = absl::InfiniteFuture();
  Quotas quotas;
};

struct StartedEvent {
  std::string conversation_id;
  int64_t version = 0;  // it starts from; 0: an empty conversation
  bool created = false;
  int64_t tokens_reused = 0;  // conversation tokens whose state came from a snapshot
  std::string restored_from;  // "none", "device", "host", "tokens" (rebuilt)
  uint64_t seed = 0;
};

struct ProgressEvent {
  int64_t done = 0, total = 0;  // prefill tokens
};

// Log-probabilities of the next input tokens (the separator before them included), each given all
// tokens before it. Of the first token of an empty conversation there is none: NaN.
struct PromptLogprobsEvent {
  int64_t first = 0;  // place of tokens[0] in the input
  std::vector<kernels::TokenValue> tokens;
};

// The most probable tokens at one place, in the event itself: a step that makes it allocates
// nothing.
class TopTokens {
 public:
  TopTokens() = default;
  template <typename Iterator>  // at most kMaxTopLogprobs
  TopTokens(Iterator begin, Iterator end) : size_(end - begin) {
    std::copy(begin, end, values_.begin());
  }
  size_t size() const { return size_; }
  const kernels::TokenValue* begin() const { return values_.data(); }
  const kernels::TokenValue* end() const { return begin() + size_; }
  const kernels::TokenValue& operator[](size_t i) const { return values_[i]; }

 private:
  size_t size_ = 0;
  std::array<kernels::TokenValue, kernels::kMaxTopLogprobs> values_;
};

struct TokenEvent {
  int32_t token = 0;
  float logprob = 0;
  absl::Duration latency;  // since the token before it, or since prefill ended
  TopTokens top;
};

struct Usage {
  int64_t prompt_tokens = 0;      // input of this request
  int64_t completion_tokens = 0;  // kept output
  int64_t reused_tokens = 0;
  int64_t conversation_tokens = 0;  // after this turn
};

struct Timings {
  absl::Duration queue, restore, prefill, time_to_first_token, decode, mean_inter_token;
};

struct FinishedEvent {
  FinishReason reason = FinishReason::kStop;
  std::string stop_match;             // the stop string, or empty
  std::optional<int32_t> stop_token;  // the stop id
  Usage usage;
  Timings timings;
  bool committed = false;
  int64_t version = 0;                         // the new version when committed
  std::shared_ptr<const StateSnapshot> state;  // with keep_state; null: nothing was consumed
};

// An error may still have committed what was there (KEEP_PARTIAL, and the client is gone or its
// deadline passed): its status then carries the new version.
inline constexpr char kCommittedPayload[] = "skein.committed";
inline absl::Status WithCommittedVersion(absl::Status status, int64_t version) {
  status.SetPayload(kCommittedPayload, absl::Cord(std::to_string(version)));
  return status;
}
inline std::optional<int64_t> CommittedVersion(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kCommittedPayload);
  if (!payload.has_value()) return std::nullopt;
  return std::stoll(std::string(*payload));
}

// Receives one request's events, in order, from one thread at a time (an output shard): OnQueued*,
// OnStarted, OnProgress* and OnPromptLogprobs*, OnOutput*, then exactly one of OnFinished or
// OnError. Calls must return quickly and never block.
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;
  virtual void OnQueued(int64_t position) = 0;
  virtual void OnStarted(const StartedEvent& event) = 0;
  virtual void OnProgress(const ProgressEvent& event) = 0;
  virtual void OnPromptLogprobs(const PromptLogprobsEvent&) {}  // only when asked for
  // Tokens that are final (not held back by a partial stop match) and the valid UTF-8 text that
  // they complete; either may be empty. When a stop string begins inside a token, the leading bytes
  // come as re-encoded tokens, whose logprob is NaN: they were never sampled.
  virtual void OnOutput(std::vector<TokenEvent> tokens, std::string text) = 0;
  virtual void OnFinished(const FinishedEvent& event) = 0;
  virtual void OnError(const absl::Status& status) = 0;
  // Polled by the engine thread before each step; must be lock-free. False pauses the row: the
  // reader is slow.
  virtual bool Writable() const = 0;
};

struct ScoreEvent {
  std::vector<float> logprobs;  // of the next continuation tokens
  std::vector<uint8_t> greedy;  // whether each was the arg max
};

class ScoreSink {
 public:
  virtual ~ScoreSink() = default;
  virtual void OnScores(const ScoreEvent& event) = 0;
  virtual void OnPrompt(std::shared_ptr<const ScorePrompt>) {}  // with keep_prompt
  virtual void OnFinished(const Usage& usage) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

}  // namespace skein::engine
