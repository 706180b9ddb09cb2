#pragma once
// The engine thread: takes requests, admits them into slots, steps the model, samples, ends
// requests. All of it runs on one thread, so nothing here is locked; what other threads read is
// atomic.

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/admission.h"
#include "engine/engine.h"
#include "engine/output_shards.h"
#include "engine/request_queue.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/state_pool.h"

namespace skein::engine {

class EngineLoop {
 public:
  struct Parts {  // all outlive the loop; observer may be null
    Model& model;
    kernels::Device& device;
    const Tokenizer& tokenizer;
    uint64_t model_fingerprint;
    const EngineOptions& options;
    EngineObserver* observer;
    ConversationStore& store;
    RequestQueue& queue;
    OutputShards& shards;
    // Makes a request that waited for its conversation ready to run. An error has released the
    // lease.
    std::function<absl::Status(Lease, Sequence*)> begin;
  };
  static absl::StatusOr<std::unique_ptr<EngineLoop>> Create(const Parts& parts);

  void Run();  // until the queue says stop

  // Any thread.
  void SetSlowReaderLimit(absl::Duration limit) {
    slow_reader_ns_ = absl::ToInt64Nanoseconds(limit);
  }
  int32_t slots_used() const { return slots_used_.load(std::memory_order_relaxed); }
  absl::Duration oldest_waiting() const;
  absl::Duration since_heartbeat() const;  // zero while idle

 private:
  using SequencePtr = std::unique_ptr<Sequence>;
  EngineLoop(const Parts& parts, std::unique_ptr<StatePool> pool, kernels::Buffer scratch);

  // engine_loop.cc: who comes and goes
  void Turn();
  absl::Time SleepUntil();
  void TakeArrivals();
  void EndOverdue(absl::Time now);
  std::optional<End> Overdue(const Sequence& sequence, absl::Time now) const;
  void UpdatePauses(absl::Time now);
  void EndWaiting(Admission::Ticket ticket, absl::Time now, const absl::Status& hopeless);
  void FillSlots(absl::Time now);
  void Seat(Admission::Ticket ticket, int32_t slot, absl::Time now);
  void Admit(SequencePtr sequence, absl::Time now);
  void Resume(Sequence* sequence);
  int32_t FreeSlot(absl::Time now);
  bool DropSlowest(absl::Time now);
  Sequence* Row(Admission::Ticket ticket);
  void TellStarted(const Sequence& sequence);
  void Park(Sequence* sequence);
  void TellPositions(absl::Time now);
  void Beat(absl::Time now);
  void FlushEvents();

  // engine_wait.cc: who waits for a conversation
  void Enqueue(SequencePtr sequence);
  void ClaimConversations();
  void TellPlacesInLines(absl::Time now);
  absl::Time NextInLines(absl::Time now) const;

  // engine_end.cc: how a request ends
  void Finish(Sequence* sequence, End end, const absl::Status& error);
  void FinishOne(Sequence* sequence, End end, const absl::Status& error);
  void FinishScore(Sequence* sequence, End end, const absl::Status& error);
  absl::StatusOr<int64_t> CommitTurn(Sequence* sequence, const std::string& reason);
  std::shared_ptr<const StateSnapshot> FinalState(Sequence* sequence);
  void Retire(Sequence* sequence, End end, const absl::Status& error, const Usage& usage,
              const Timings& timings);
  Usage UsageOf(const Sequence& sequence) const;
  Timings TimingsOf(const Sequence& sequence) const;
  void StopAll();

  // engine_step.cc: one step of the model
  void RunStep();
  void BuildBatch();
  void AddToBatch(const StepShare& share);
  void SampleAndScore(const float* logits);
  void AfterPrefill(Sequence* sequence, absl::Time now);
  void Part(Sequence* leader);
  void TakePromptScores(Sequence* sequence, int64_t position, int32_t n, size_t at);
  void TakeSample(Sequence* sequence, const kernels::SampleResult& result, absl::Time now);
  void TakeScores(Sequence* sequence, int64_t position, int32_t n, size_t at);
  void EndRow(Sequence* sequence, End end, const absl::Status& error);
  void TakeResults(absl::Time now);
  void KeepHeldState(Sequence* sequence);
  void CountGenerated(const Sequence& sequence);
  void Report(absl::Time began, absl::Time ended, int32_t generated);

  // Constant after construction.
  const Parts p_;
  const std::unique_ptr<StatePool> pool_;
  const std::unique_ptr<kernels::Stream> stream_;
  const kernels::Buffer scratch_;  // of the sampler

  Scheduler scheduler_;
  Admission admission_;
  absl::flat_hash_map<Admission::Ticket, SequencePtr> waiting_;  // for their first slot
  Admission::Ticket next_ticket_ = 1;
  std::vector<SequencePtr> in_lines_;  // wait for a conversation; in order of arrival
  std::vector<SequencePtr> running_;   // admitted, in order of admission; also those without a slot
  std::vector<SequencePtr> arrivals_;
  std::vector<std::shared_ptr<RequestControl>> cancelled_;  // since the last turn
  std::vector<Admission::Ticket> order_;                    // of those who wait
  bool untold_ = false;  // someone who waits has not heard his position yet
  absl::Time positions_told_ = absl::InfinitePast();
  int32_t unsettled_ = 0;  // ended, and their last events not flushed yet
  RequestQueue::Orders orders_;
  bool slept_ = true;
  absl::Time last_step_ended_ = absl::InfinitePast();

  // The step at hand; reused, so that a step allocates nothing.
  std::vector<RowDemand> demands_;
  std::vector<StepShare> shares_;  // generating rows first, then scoring ones
  std::vector<int32_t> tokens_, offsets_, slots_, logits_of_, targets_;
  std::vector<kernels::SampleRow> sample_rows_;
  std::vector<kernels::SampleResult> samples_;
  std::vector<float> logprobs_;
  std::vector<uint8_t> greedy_;
  std::vector<TokenEvent> released_;
  std::vector<std::vector<float>> spare_states_;  // host buffers for held states
  int32_t decode_rows_ = 0, prefill_rows_ = 0, prefill_tokens_ = 0;
  std::vector<absl::Duration> inter_token_;  // of this step
  std::vector<TenantTokens> generated_;      // tenants stay, their counts are of this step

  // Read or set by other threads.
  std::atomic<int64_t> slow_reader_ns_;
  std::atomic<int32_t> slots_used_{0};
  std::atomic<int64_t> oldest_arrival_ns_{0};  // 0: nobody waits
  std::atomic<int64_t> beat_ns_{0};            // 0: idle
};

}  // namespace skein::engine
