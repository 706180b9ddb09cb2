#pragma once
// One request inside the engine: its tokens, how far its state has come, and what ends it. Holds no
// device memory and calls none; the engine loop moves states. Made by the submitting thread, then
// used by the engine thread alone.

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/admission.h"
#include "engine/chat_template.h"
#include "engine/hold_back.h"
#include "engine/output_shards.h"
#include "engine/request.h"
#include "engine/sampling_state.h"
#include "engine/scheduler.h"
#include "engine/store/conversation_store.h"
#include "engine/tokenizer.h"

namespace skein::engine {

// Set by any thread, polled by the engine thread at token boundaries. Owned by the registry of
// running requests and by the sequence.
struct RequestControl {
  enum Cancel : int { kNone, kByClient, kByTransport };
  std::atomic<int> cancel{kNone};
  std::atomic<bool> turn_came{false};  // the conversation that it waits for may be free
  uint64_t ticket = 0;                 // engine thread only; 0: it has not come there yet
  int32_t live = 1;  // sequences of the request that have not ended; engine thread only
};

// What a request counts for while it waits. Constant once it waits.
struct QueuePlace {
  std::string tenant;
  int64_t tokens = 0;        // of its prompt
  int64_t least_output = 0;  // tokens without which it cannot end well
  int64_t most_output = 0;
  bool exempt = false;    // limits do not refuse it
  bool accepted = false;  // part of what runs already: a drain does not refuse it
  absl::Time deadline = absl::InfiniteFuture();
  bool must_end = true;  // before the deadline; false: its own max_time ends it earlier
  int32_t due = -1;      // where the queue counts it
};

enum class End { kStop, kLength, kTime, kCancelled, kDrained, kDisconnected, kDeadline, kError };

// "stop", "length", "time", "cancelled", "drained", or "error" for the ends that are a status to
// the client.
const char* FinishReasonName(End end);
bool Commits(End end, CommitMode mode);

struct Sequence;
// "none", "device", "host" or "tokens", as in StartedEvent; while its lease has the snapshot.
const char* RestoredFrom(const Sequence& sequence);

struct Sequence {
  // ---- constant once made
  std::string request_id, tenant;
  std::shared_ptr<RequestControl> control;
  std::shared_ptr<OutputStream> stream;
  std::optional<Lease> lease;  // none: stateless. Its snapshot goes once the state is in a slot
  bool reserves = false;       // the lease does: it has to be committed or released
  TemplateCursor cursor = TemplateCursor::kStart;  // after the conversation at the lease's base
  bool score = false;
  int32_t index = 0;  // among the sequences of one request
  bool prompt_logprobs = false;
  bool keep_state = false;
  CommitMode commit = CommitMode::kNever;
  StoppingOptions stopping;
  std::vector<int32_t> continuation;  // of a score; none with keep_state
  QueuePlace queued;
  absl::Time submitted;  // monotonic, as all times here
  absl::Time deadline;
  int64_t pending_size = 0;   // tokens[0, pending_size) were in the conversation before
  int64_t prompt_size = 0;    // tokens[0, prompt_size) are not output
  int64_t base_consumed = 0;  // tokens of the conversation before tokens[0]; the state starts there

  // ---- while it waits for its conversation; what is above comes when it has it
  std::optional<uint64_t> place;           // in the line, see ConversationStore::Join
  std::optional<GenerateRequest> request;  // to begin with

  // ---- engine thread
  Admission::Ticket ticket = 0;
  std::vector<int32_t>
      tokens;  // those the starting state has not consumed, then the input, then the output
  int64_t consumed = 0;                                     // of `tokens`, by the state in the slot
  int64_t unchanged = std::numeric_limits<int64_t>::max();  // tokens[0, unchanged) are what was
                                                            // fed, the rest is not
  SamplingState sampling;
  std::optional<HoldBack> hold_back;  // when there are stop strings
  std::string stop_match;
  std::optional<int32_t> stop_token;

  // The other sequences of the request, until the one that takes the input in for all of them has
  // come to where they part: before the last token of the prompt, which each consumes by itself.
  std::vector<std::unique_ptr<Sequence>> followers;

  int32_t slot = -1;
  bool from_device = false;        // its state was still in the slot
  const char* restored_from = "";  // RestoredFrom, once it is admitted
  std::shared_ptr<const StateSnapshot>
      slot_holds;             // once it ends: what the slot's state was kept as
  std::vector<float> parked;  // the state while it has no slot; empty before admission
  // The same, as it was at the parting: shared by the followers that found no slot.
  std::shared_ptr<const std::vector<float>> origin;
  std::vector<float> held_state;  // the state before the held tokens, while hold_back holds any
  int64_t held_consumed = -1;     // what it has consumed; -1: there is none
  bool paused = false;
  absl::Time paused_since;

  absl::Time admitted = absl::InfinitePast(), prefilled = absl::InfinitePast();
  absl::Time first_token = absl::InfinitePast(), last_token = absl::InfinitePast();
  absl::Time last_position = absl::InfinitePast();  // of the latest Queued
  absl::Time last_progress = absl::InfinitePast();
  absl::Duration restore;
  std::vector<absl::Duration> to_host, to_device;  // copies of the state, beside the restore
  int32_t parkings = 0;
  int64_t sampled = 0;  // tokens, also those that a stop string took away again
  bool done = false;

  // Fill in what follows from the request and the lease (set before). `seed` is used when the
  // request has none.
  void StartGenerate(GenerateRequest request, const uint32_t* valid_mask, uint64_t seed);
  void StartScore(ScoreRequest request);
  // Of a follower: the same request once more, with a seed of its own. `leader` has been started.
  void StartFollower(const Sequence& leader, int32_t number);
  // Of a follower, at the parting: what it shares with the one that took the input in, up to where
  // that one is. The state is moved by the caller.
  void Follow(const Sequence& leader);

  int64_t output_size() const { return static_cast<int64_t>(tokens.size()) - prompt_size; }
  bool prefilling() const { return consumed < prompt_size && output_size() == 0; }
  // Tokens to consume before the first output, or at all when there is none. With max_tokens 0 the
  // last token stays pending, so that the next turn has something to go on from.
  int64_t prefill_target() const;
  // Nothing is sampled or scored: it ends when the input is taken in, but for its last token.
  bool ends_with_input() const { return score ? keep_state : stopping.max_tokens == 0; }
  // What it asks of the admission.
  Admission::Request Wish() const;
  // The prompt but for its last token is taken in on its own first: several sequences part there,
  // and what is scored before there is not sampled from.
  bool in_shared_part() const {
    return (prompt_logprobs || !followers.empty()) && consumed < prompt_size - 1;
  }
  // Logits of the next tokens are for scoring the tokens behind them, not for sampling.
  bool scores_next() const { return score || (prompt_logprobs && in_shared_part()); }
  RowDemand Demand() const;
  // Appends the next n tokens to consume.
  void AppendNext(int32_t n, std::vector<int32_t>* out) const;
  // How many of the next n tokens' logits are wanted; they are the last ones.
  int32_t WantedLogits(int32_t n) const;
  // The token after tokens[position], whose log-probability is asked for.
  int32_t Target(int64_t position) const;

  // Takes a sampled token; what is final now goes to *released. Says whether, and how, the request
  // ends.
  std::optional<End> Accept(const kernels::SampleResult& result, absl::Time now,
                            const Tokenizer& tokenizer, std::vector<TokenEvent>* released);
  // Removes the tokens that are still held back; they were never shown.
  void DropHeld();

 private:
  void StartFromLease(const std::vector<int32_t>& separator, const std::vector<int32_t>& input,
                      size_t reserve);
  End CutAt(const HoldBack::Match& match, const Tokenizer& tokenizer,
            std::vector<TokenEvent>* released);
};

}  // namespace skein::engine
