#pragma once
// The engine: one model, its device slots, the scheduler, and the one thread that steps them. The
// conversations are the caller's: engines share them. All public functions are thread-safe. See
// README, "Life of a Generate request".

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/models/model.h"
#include "engine/request.h"
#include "engine/store/conversation_store.h"
#include "engine/tokenizer.h"
#include "kernels/device.h"

namespace skein::engine {

struct EngineOptions {
  int32_t slots = 64;               // device slots = rows that can run at once
  int32_t max_step_tokens = 512;    // all rows of one step
  int32_t max_prefill_chunk = 256;  // of one row in one step
  absl::Duration target_inter_token = absl::Milliseconds(50);  // the step budget, see scheduler.h
  int32_t max_queued = 256;                                    // requests waiting
  int64_t max_queued_tokens = 1 << 20;                         // their prompt tokens together
  int32_t output_shards = 1;                                   // threads that run sinks
  absl::Duration slow_reader_limit = absl::Seconds(30);        // paused longer: RESOURCE_EXHAUSTED
  // Rows that run but lent their slot; each holds one state in host memory. 0: twice the slots.
  // When there are as many, the one whose reader has been slow for longest ends before its limit.
  int32_t max_parked = 0;
  absl::Duration stall_limit = absl::Seconds(10);  // healthy() turns false when a step takes longer
};

// What the engine thread publishes after each step, for metrics. Called on the engine thread: be
// quick.
struct TenantTokens {
  std::string tenant;
  int32_t tokens = 0;
};

struct StepReport {
  int32_t decode_rows = 0, prefill_rows = 0, tokens = 0, prefill_tokens = 0, generated_tokens = 0;
  absl::Duration duration;  // of the step
  absl::Duration gap;       // idle between this step and the one before although work was there
  std::span<const TenantTokens> generated;  // by tenant, the sum is generated_tokens; some are zero
  std::span<const absl::Duration> inter_token;  // since the token before, of each but a first one
};

// Of a request with several sequences once each; the first one has the prompt tokens.
struct RequestReport {        // once per request, when it has ended
  std::string code;           // "OK", or the canonical name of the status ("CANCELLED", ...)
  std::string finish_reason;  // "stop", "length", "time", "cancelled", "drained", or "error"
  Usage usage;
  Timings timings;
  absl::Duration total;
  std::string restored_from;  // as in StartedEvent; empty: it never had a slot
  std::string missed;         // "tokens": why, as MissName
  std::string reused_from;    // usage.reused_tokens: "conversation", "prompt_state", "score_prompt"
  bool score = false;
  std::string tenant;
  int32_t parkings = 0;  // times its state left its slot for another request
  // Copies of its state from the device to host memory, and back beside the one at admission.
  std::vector<absl::Duration> to_host, to_device;
};

class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  virtual void OnStep(const StepReport& report) = 0;
  virtual void OnRequestDone(const RequestReport& report) = 0;
};

struct EngineGauges {
  int32_t running = 0, waiting = 0, slots_used = 0, slots = 0;
  int64_t waiting_tokens = 0;
  absl::Duration oldest_waiting;
  absl::Duration since_heartbeat;  // zero while idle
  bool draining = false;
  ConversationStoreGauges store;  // shared by all engines
};

class Engine {
 public:
  // `model`, `device`, `tokenizer` and `conversations` outlive the engine. `observer` may be null.
  // Starts the engine thread. The model must have been loaded for at least options.slots rows and
  // rows of logits, and options.max_step_tokens tokens.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(
      Model& model, kernels::Device& device, const Tokenizer& tokenizer, uint64_t model_fingerprint,
      const EngineOptions& options, ConversationStore& conversations, EngineObserver* observer);
  // Ends what still runs with UNAVAILABLE, joins all threads.
  ~Engine();

  // Accepts or refuses at once (a refusal is a status, no sink call): RESOURCE_EXHAUSTED queue
  // full or tenant's quota, UNAVAILABLE draining, DEADLINE_EXCEEDED when it cannot be met,
  // NOT_FOUND, ABORTED busy, FAILED_PRECONDITION versions, INVALID_ARGUMENT token ids out of range.
  // The conversation is reserved from here until the request has ended. `sinks` (shared by the
  // caller's reactor and the output shards) get the events: one sink a sequence, in order of index,
  // so request.num_sequences of them.
  absl::Status Submit(GenerateRequest request, std::vector<std::shared_ptr<ResponseSink>> sinks);
  absl::Status Submit(GenerateRequest request, std::shared_ptr<ResponseSink> sink);  // of one
  absl::Status Submit(ScoreRequest request, std::shared_ptr<ScoreSink> sink);
  // Leave to hold one ScorePrompt, until it is dropped. Null: as many as there are slots are held,
  // which bounds their memory; each continuation then takes the prompt in itself.
  std::shared_ptr<const void> LeaveToKeepPrompt();
  // While it is held, until its deadline, a drain waits for more requests (`accepted`) of a call
  // that was accepted. Not for longer than the engine lives.
  std::shared_ptr<const void> MoreToCome();

  // The same prompt state, computed: its tokens are taken in as those of any request, among what
  // runs. Blocks until it is done; asks `wanted` now and then, and is CANCELLED when that says no.
  // UNAVAILABLE while draining.
  absl::StatusOr<std::shared_ptr<const PromptState>> Compute(const PromptState& prompt,
                                                             const std::function<bool()>& wanted);

  // Asks a request to end at the next token boundary. `by_client`: the Cancel RPC (it gets Finished
  // CANCELLED); otherwise the transport went away (its sink gets OnError CANCELLED). False: no such
  // request.
  bool Cancel(absl::string_view request_id, bool by_client);

  // Refuses new requests; what runs goes on until `deadline`, then ends with kDrained at a token
  // boundary. Blocks until nothing runs. Undrain accepts again.
  void Drain(absl::Time deadline);
  void BeginDrain(absl::Time deadline);  // the same without waiting
  void Undrain();
  // Those of the options that may change while it runs: max_queued, max_queued_tokens,
  // slow_reader_limit. What waits already may stay.
  void SetLimits(const EngineOptions& options);

  ConversationStore& conversations();
  const ModelConfig& config() const;
  const ModelTag& tag() const;
  const Tokenizer& tokenizer() const;
  EngineGauges gauges() const;
  bool healthy() const;  // the heartbeat is younger than stall_limit
  // What Submit would say to any request of this tenant: DRAINING, QUEUE_FULL, or TENANT_QUOTA of
  // its requests. Costs nothing, so that an overloaded server can ask before it parses or
  // tokenizes.
  absl::Status CheckOpen(const std::string& tenant, const Quotas& quotas) const;
  // How long a refused client should wait, from the measured drain rate of the queue; with jitter.
  absl::Duration RetryDelay() const;

 private:
  class Impl;
  explicit Engine(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace skein::engine
