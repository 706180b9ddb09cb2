#include "engine/engine.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "engine/clock.h"
#include "engine/engine_loop.h"
#include "engine/output_shards.h"
#include "engine/request_queue.h"
#include "engine/sampling_state.h"

namespace skein::engine {
namespace {

// `field`: where the API has what is appended.
absl::Status NothingToGoOnFrom(absl::string_view field) {
  return base::InvalidField(field,
                            "is empty, and so is the conversation: there is nothing to go on from "
                            "(token 0 starts a document)");
}

absl::Status CheckTokens(absl::string_view field, const std::vector<int32_t>& tokens, int32_t V) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < V) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(field, "[", i, "]: token id ", tokens[i], " is not in [0, ", V, ")"));
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const EngineOptions& options) {
  const auto at_least_one = [](absl::string_view name, int64_t value) {
    return value >= 1 ? absl::OkStatus()
                      : absl::InvalidArgumentError(
                            absl::StrCat("engine: ", name, " is ", value, "; at least 1"));
  };
  SKEIN_RETURN_IF_ERROR(at_least_one("slots", options.slots));
  SKEIN_RETURN_IF_ERROR(at_least_one("max_step_tokens", options.max_step_tokens));
  SKEIN_RETURN_IF_ERROR(at_least_one("max_prefill_chunk", options.max_prefill_chunk));
  SKEIN_RETURN_IF_ERROR(at_least_one("max_queued", options.max_queued));
  SKEIN_RETURN_IF_ERROR(at_least_one("max_queued_tokens", options.max_queued_tokens));
  return at_least_one("output_shards", options.output_shards);
}

// Several sequences that commit nothing need no conversations of their own.
bool ReadsOnly(const GenerateRequest& request) {
  return request.num_sequences > 1 && request.commit == CommitMode::kNever;
}

// Whether the conversation has to bring the token to go on from.
bool NeedsOne(const GenerateRequest& request) {
  return request.input.empty() && request.stopping.max_tokens > 0;
}

bool WantsAllTokens(const GenerateRequest& request) {
  return request.sampling.penalty_scope == PenaltyScope::kConversation;
}

uint64_t DrawSeed() {
  std::random_device source;
  return (uint64_t{source()} << 32) | source();
}

// Which ids the tokenizer knows, as a bit mask for the sampler; empty when it knows all of them.
std::vector<uint32_t> ValidTokens(const Tokenizer& tokenizer, int32_t V, int64_t* valid) {
  const int32_t vocab = std::min(V, tokenizer.vocab_size());
  std::vector<uint32_t> mask((V + 31) / 32, 0);
  *valid = 0;
  for (int32_t token = 0; token < vocab; ++token) {
    if (!tokenizer.IsValid(token)) continue;
    mask[token / 32] |= uint32_t{1} << (token % 32);
    ++*valid;
  }
  if (*valid == vocab) mask.clear();
  return mask;
}

}  // namespace

class Engine::Impl {
 public:
  Impl(Model& model, kernels::Device& device, const Tokenizer& tokenizer, uint64_t fingerprint,
       const EngineOptions& options, ConversationStore& store, EngineObserver* observer,
       ChatTemplate chat)
      : model_(model),
        device_(device),
        tokenizer_(tokenizer),
        tag_{fingerprint, tokenizer.Fingerprint()},
        options_(options),
        observer_(observer),
        chat_(std::move(chat)),
        valid_mask_(ValidTokens(tokenizer, model.config().V, &valid_tokens_)),
        store_(store),
        queue_(options.max_queued, options.max_queued_tokens),
        shards_(tokenizer, options.output_shards, options.slots) {}

  absl::Status Start() {
    SKEIN_ASSIGN_OR_RETURN(loop_, EngineLoop::Create({model_, device_, tokenizer_, tag_.fingerprint,
                                                      options_, observer_, store_, queue_, shards_,
                                                      [this](Lease lease, Sequence* sequence) {
                                                        return Begin(*std::move(sequence->request),
                                                                     std::move(lease), sequence);
                                                      }}));
    thread_ = std::thread([this] {
      pthread_setname_np(pthread_self(), "skein-engine");
      device_.EnterThread();
      loop_->Run();
    });
    return absl::OkStatus();
  }

  ~Impl() {
    if (!thread_.joinable()) return;
    queue_.Stop();
    thread_.join();
  }

  absl::Status Submit(GenerateRequest request, std::vector<std::shared_ptr<ResponseSink>> sinks);
  absl::Status Submit(ScoreRequest request, std::shared_ptr<ScoreSink> sink);
  EngineGauges gauges() const;

  // Constant after construction.
  Model& model_;
  kernels::Device& device_;
  const Tokenizer& tokenizer_;
  const ModelTag tag_;
  const EngineOptions options_;
  EngineObserver* const observer_;
  const ChatTemplate chat_;
  int64_t valid_tokens_ = 0;
  const std::vector<uint32_t> valid_mask_;

  // Own synchronisation.
  const std::shared_ptr<std::atomic<int32_t>> kept_prompts_ =  // shared with those who hold leave
      std::make_shared<std::atomic<int32_t>>(0);
  ConversationStore& store_;
  RequestQueue queue_;
  OutputShards shards_;
  std::unique_ptr<EngineLoop> loop_;
  std::thread thread_;

 private:
  absl::Status Check(const GenerateRequest& request) const;
  absl::Status Check(const ScoreRequest& request) const;
  absl::Status Reserve(const std::string& request_id, absl::Time deadline, absl::Duration max_time,
                       const Quotas& quotas, Sequence* sequence);
  LeaseRequest WantedLease(const GenerateRequest& request) const;
  absl::StatusOr<std::vector<Lease>> TakeConversation(GenerateRequest request, Sequence* sequence);
  absl::StatusOr<std::vector<Lease>> TakeCopies(GenerateRequest request, Sequence* sequence);
  absl::Status Begin(GenerateRequest request, std::optional<Lease> lease, Sequence* sequence);
  void TakeLease(Lease lease, Sequence* sequence) const;
};

absl::Status Engine::Impl::Check(const GenerateRequest& request) const {
  const int32_t V = model_.config().V;
  SKEIN_RETURN_IF_ERROR(CheckTokens("input", request.input, V));
  SKEIN_RETURN_IF_ERROR(CheckTokens("separator", request.separator, V));
  SKEIN_RETURN_IF_ERROR(CheckSampling(request.sampling, request.stopping, V, valid_tokens_));
  if (request.top_logprobs < 0 || request.top_logprobs > kernels::kMaxTopLogprobs) {
    return absl::InvalidArgumentError(absl::StrCat("top_logprobs is ", request.top_logprobs,
                                                   "; 0 to ", kernels::kMaxTopLogprobs));
  }
  if (request.num_sequences < 1)
    return absl::InvalidArgumentError("num_sequences must be at least 1");
  if (request.conversation_id.empty() &&
      (request.base_version.has_value() || request.expected_version.has_value())) {
    return absl::InvalidArgumentError("base_version and expected_version need a conversation_id");
  }
  if (request.prompt != nullptr) {
    SKEIN_CHECK(request.prompt->model.fingerprint == tag_.fingerprint &&
                request.prompt->model.vocabulary == tag_.vocabulary);
  }
  if (request.conversation_id.empty() && request.prompt == nullptr && NeedsOne(request)) {
    return NothingToGoOnFrom("input");
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::Check(const ScoreRequest& request) const {
  const int32_t V = model_.config().V;
  SKEIN_RETURN_IF_ERROR(CheckTokens("prompt", request.prompt, V));
  SKEIN_RETURN_IF_ERROR(CheckTokens("separator", request.separator, V));
  SKEIN_RETURN_IF_ERROR(CheckTokens("continuation", request.continuation, V));
  if (request.continuation.empty() != request.keep_prompt) {
    return absl::InvalidArgumentError(request.keep_prompt
                                          ? "a prompt that is kept has no continuation"
                                          : "continuation is empty: nothing to score");
  }
  if (request.after != nullptr) {
    SKEIN_CHECK(!request.after->pending.empty() && request.conversation_id.empty() &&
                request.prompt.empty());
    return absl::OkStatus();
  }
  if (request.conversation_id.empty() && request.base_version.has_value()) {
    return absl::InvalidArgumentError("base_version needs a conversation_id");
  }
  if (request.conversation_id.empty() && request.prompt.empty()) {
    return NothingToGoOnFrom("prompt");
  }
  return absl::OkStatus();
}

absl::Status Engine::Impl::Reserve(const std::string& request_id, absl::Time deadline,
                                   absl::Duration max_time, const Quotas& quotas,
                                   Sequence* sequence) {
  if (request_id.empty()) return absl::InvalidArgumentError("request_id is empty");
  sequence->request_id = request_id;
  sequence->submitted = MonotonicNow();
  sequence->deadline = MonotonicFromWall(deadline);
  if (sequence->deadline <= sequence->submitted) {
    return absl::DeadlineExceededError("the deadline had passed when the request arrived");
  }
  sequence->queued.deadline = sequence->deadline;
  sequence->queued.must_end = sequence->submitted + max_time >= sequence->deadline;
  SKEIN_ASSIGN_OR_RETURN(sequence->control, queue_.Reserve(request_id, quotas, sequence->submitted,
                                                           &sequence->queued));
  return absl::OkStatus();
}

void Engine::Impl::TakeLease(Lease lease, Sequence* sequence) const {
  sequence->cursor = chat_.CursorAfter(tokenizer_.Decode(lease.last_tokens));
  sequence->lease = std::move(lease);
}

absl::Status Engine::Impl::Submit(GenerateRequest request,
                                  std::vector<std::shared_ptr<ResponseSink>> sinks) {
  SKEIN_CHECK(static_cast<int64_t>(sinks.size()) == request.num_sequences);
  SKEIN_RETURN_IF_ERROR(Check(request));
  auto sequence = std::make_unique<Sequence>();
  const StoppingOptions& stopping = request.stopping;
  sequence->queued.tenant = request.tenant;
  sequence->queued.tokens = static_cast<int64_t>(request.input.size() + request.separator.size());
  // Not max_tokens, even where nothing but the limit can stop it: what comes until the deadline is
  // of use to whoever reads the stream.
  sequence->queued.least_output = stopping.min_tokens;
  sequence->queued.most_output = stopping.max_tokens;
  sequence->queued.exempt = request.keep_state;
  SKEIN_RETURN_IF_ERROR(Reserve(request.request_id, request.deadline, stopping.max_time,
                                request.quotas, sequence.get()));
  const std::string request_id = request.request_id;
  absl::StatusOr<std::vector<Lease>> others =
      request.num_sequences == 1 ? TakeConversation(std::move(request), sequence.get())
                                 : TakeCopies(std::move(request), sequence.get());
  if (!others.ok()) {
    queue_.Abandon(request_id, sequence->queued);
    return others.status();
  }
  sequence->stream = shards_.NewStream(std::move(sinks[0]));
  sequence->control->live = static_cast<int32_t>(sinks.size());
  for (size_t i = 1; i < sinks.size(); ++i) {
    auto follower = std::make_unique<Sequence>();
    follower->lease = others->empty() ? sequence->lease : std::move((*others)[i - 1]);
    follower->StartFollower(*sequence, static_cast<int32_t>(i));
    follower->stream = shards_.NewStream(std::move(sinks[i]));
    sequence->followers.push_back(std::move(follower));
  }
  queue_.Push(std::move(sequence));
  return absl::OkStatus();
}

LeaseRequest Engine::Impl::WantedLease(const GenerateRequest& request) const {
  // The first token of the input is scored after the last one before it.
  const bool one = NeedsOne(request) || request.want_prompt_logprobs;
  return {
      .key = {request.tenant, request.conversation_id},
      .model = tag_,
      .on_model_mismatch = request.on_model_mismatch,
      .create_if_missing = request.create_if_missing,
      .base_version = request.base_version,
      .expected_version = request.expected_version,
      .pending = one ? Pending::kAtLeastOne : Pending::kAny,
      .want_all_tokens = WantsAllTokens(request),
      .prompt = request.prompt,
      .ttl = request.ttl,
      .quotas = request.quotas,
  };
}

// The conversation, or a place in its line, or neither for a stateless request. No other leases.
absl::StatusOr<std::vector<Lease>> Engine::Impl::TakeConversation(GenerateRequest request,
                                                                  Sequence* sequence) {
  if (request.conversation_id.empty()) {
    SKEIN_RETURN_IF_ERROR(Begin(std::move(request), std::nullopt, sequence));
    return std::vector<Lease>();
  }
  LeaseRequest wanted = WantedLease(request);
  absl::StatusOr<Lease> lease = store_.Acquire(wanted);
  if (lease.ok()) {
    SKEIN_RETURN_IF_ERROR(Begin(std::move(request), *std::move(lease), sequence));
    return std::vector<Lease>();
  }
  if (!absl::IsAborted(lease.status()) || !request.wait_if_busy) return lease.status();
  // Called under the store's lock, which is taken before the queue's and never after it.
  SKEIN_ASSIGN_OR_RETURN(sequence->place,
                         store_.Join(std::move(wanted), [this, control = sequence->control] {
                           control->turn_came = true;
                           queue_.Nudge();
                         }));
  sequence->stopping = request.stopping;  // max_time counts while it waits
  sequence->request = std::move(request);
  return std::vector<Lease>();
}

// Of several sequences each has a copy of the conversation, which is not waited for: the leases of
// the sequences but the first, or none when they commit nothing.
absl::StatusOr<std::vector<Lease>> Engine::Impl::TakeCopies(GenerateRequest request,
                                                            Sequence* sequence) {
  std::vector<Lease> leases;
  if (!request.conversation_id.empty()) {
    SKEIN_ASSIGN_OR_RETURN(
        leases,
        store_.AcquireCopies(WantedLease(request), ReadsOnly(request) ? 0 : request.num_sequences));
  }
  std::optional<Lease> first;
  if (!leases.empty()) {
    first = std::move(leases[0]);
    leases.erase(leases.begin());
  }
  const std::string request_id = request.request_id;
  if (absl::Status s = Begin(std::move(request), std::move(first), sequence); !s.ok()) {
    for (const Lease& lease : leases) store_.Release(lease, request_id, "INVALID_ARGUMENT");
    return s;
  }
  return leases;
}

absl::Status Engine::Impl::Begin(GenerateRequest request, std::optional<Lease> lease,
                                 Sequence* sequence) {
  if (lease.has_value()) {
    const bool reserves = !ReadsOnly(request);
    if (NeedsOne(request) && lease->pending.empty()) {
      if (reserves) store_.Release(*lease, request.request_id, "INVALID_ARGUMENT");
      return NothingToGoOnFrom("input");
    }
    sequence->reserves = reserves;
    TakeLease(*std::move(lease), sequence);
  } else if (request.prompt != nullptr) {
    TakeLease(StartFrom(request.prompt, WantsAllTokens(request)), sequence);
  }
  sequence->StartGenerate(std::move(request), valid_mask_.empty() ? nullptr : valid_mask_.data(),
                          DrawSeed());
  return absl::OkStatus();
}

absl::Status Engine::Impl::Submit(ScoreRequest request, std::shared_ptr<ScoreSink> sink) {
  SKEIN_RETURN_IF_ERROR(Check(request));
  auto sequence = std::make_unique<Sequence>();
  sequence->queued.tenant = request.tenant;
  sequence->queued.tokens = static_cast<int64_t>(request.prompt.size() + request.separator.size() +
                                                 request.continuation.size());
  sequence->queued.exempt = request.exempt;
  sequence->queued.accepted = request.accepted;
  SKEIN_RETURN_IF_ERROR(Reserve(request.request_id, request.deadline, absl::InfiniteDuration(),
                                request.quotas, sequence.get()));
  if (!request.conversation_id.empty()) {
    const bool needs_one = request.prompt.empty();
    absl::StatusOr<Lease> lease =
        store_.Peek({.key = {request.tenant, request.conversation_id},
                     .model = tag_,
                     .base_version = request.base_version,
                     .pending = needs_one ? Pending::kAtLeastOne : Pending::kAny});
    absl::Status status = lease.status();
    if (lease.ok() && needs_one && lease->pending.empty()) status = NothingToGoOnFrom("prompt");
    if (!status.ok()) {
      queue_.Abandon(request.request_id, sequence->queued);
      return status;
    }
    TakeLease(*std::move(lease), sequence.get());
  }
  if (request.after != nullptr) {
    Lease lease;
    lease.snapshot = request.after->state;
    lease.pending = request.after->pending;
    sequence->lease = std::move(lease);
  }
  sequence->StartScore(std::move(request));
  sequence->stream = shards_.NewStream(std::move(sink));
  queue_.Push(std::move(sequence));
  return absl::OkStatus();
}

EngineGauges Engine::Impl::gauges() const {
  const RequestQueue::Counts counts = queue_.counts();
  EngineGauges gauges;
  gauges.running = counts.running;
  gauges.waiting = counts.waiting;
  gauges.waiting_tokens = counts.waiting_tokens;
  gauges.slots_used = loop_->slots_used();
  gauges.slots = options_.slots;
  gauges.oldest_waiting = loop_->oldest_waiting();
  gauges.since_heartbeat = loop_->since_heartbeat();
  gauges.draining = queue_.draining();
  gauges.store = store_.gauges();
  return gauges;
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(
    Model& model, kernels::Device& device, const Tokenizer& tokenizer, uint64_t model_fingerprint,
    const EngineOptions& options, ConversationStore& conversations, EngineObserver* observer) {
  SKEIN_RETURN_IF_ERROR(CheckOptions(options));
  // Separators only ever come with chat messages, so a model without a template never looks at the
  // cursor.
  SKEIN_ASSIGN_OR_RETURN(ChatTemplate chat, ChatTemplate::Create("rwkv", {}));
  auto impl = std::make_unique<Impl>(model, device, tokenizer, model_fingerprint, options,
                                     conversations, observer, std::move(chat));
  if (impl->valid_tokens_ == 0)
    return absl::InvalidArgumentError("the tokenizer knows none of the model's tokens");
  SKEIN_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

absl::Status Engine::Submit(GenerateRequest request,
                            std::vector<std::shared_ptr<ResponseSink>> sinks) {
  return impl_->Submit(std::move(request), std::move(sinks));
}
absl::Status Engine::Submit(GenerateRequest request, std::shared_ptr<ResponseSink> sink) {
  return impl_->Submit(std::move(request), std::vector{std::move(sink)});
}
absl::Status Engine::Submit(ScoreRequest request, std::shared_ptr<ScoreSink> sink) {
  return impl_->Submit(std::move(request), std::move(sink));
}
std::shared_ptr<const void> Engine::LeaveToKeepPrompt() {
  const std::shared_ptr<std::atomic<int32_t>> kept = impl_->kept_prompts_;
  std::shared_ptr<const void> leave(kept.get(), [kept](const void*) { --*kept; });
  if (++*kept > impl_->options_.slots) leave = nullptr;
  return leave;
}
std::shared_ptr<const void> Engine::MoreToCome() {
  RequestQueue* queue = &impl_->queue_;
  queue->Hold();
  return std::shared_ptr<const void>(queue, [queue](const void*) { queue->LetGo(); });
}
bool Engine::Cancel(absl::string_view request_id, bool by_client) {
  return impl_->queue_.Cancel(request_id,
                              by_client ? RequestControl::kByClient : RequestControl::kByTransport);
}
void Engine::BeginDrain(absl::Time deadline) {
  impl_->queue_.BeginDrain(MonotonicFromWall(deadline));
}
void Engine::SetLimits(const EngineOptions& options) {
  impl_->queue_.SetLimits(options.max_queued, options.max_queued_tokens);
  impl_->loop_->SetSlowReaderLimit(options.slow_reader_limit);
}
void Engine::Drain(absl::Time deadline) {
  BeginDrain(deadline);
  impl_->queue_.WaitUntilNoneRuns();
  impl_->shards_.WaitUntilDelivered();
}
void Engine::Undrain() { impl_->queue_.EndDrain(); }
ConversationStore& Engine::conversations() { return impl_->store_; }
const ModelTag& Engine::tag() const { return impl_->tag_; }
const ModelConfig& Engine::config() const { return impl_->model_.config(); }
const Tokenizer& Engine::tokenizer() const { return impl_->tokenizer_; }
EngineGauges Engine::gauges() const { return impl_->gauges(); }
bool Engine::healthy() const {
  return impl_->loop_->since_heartbeat() < impl_->options_.stall_limit;
}
absl::Status Engine::CheckOpen(const std::string& tenant, const Quotas& quotas) const {
  return impl_->queue_.CheckOpen(tenant, quotas);
}
// Up to a quarter longer, so that those who were refused together do not come back together.
absl::Duration Engine::RetryDelay() const {
  static std::atomic<uint32_t> drawn{0};
  const uint32_t random = drawn.fetch_add(0x9e3779b9u, std::memory_order_relaxed) >> 16;
  return impl_->queue_.RetryDelay(MonotonicNow()) * (1 + random / 262144.0);
}

}  // namespace skein::engine
