#include "server/request_record.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/clock.h"
#include "server/convert.h"
#include "server/status.h"

namespace skein::server {
namespace {

// Tokens of one message: what has piled up goes out in pieces that any client takes.
constexpr int64_t kDeltaTokens = 256;
// The engine ends a request whose reader has been slow for reader_age; with FINISH the reader has
// to be turned away before that.
constexpr double kBeforeTheEngine = 0.8;

absl::Status Replaced() {
  return base::MakeStatus(absl::StatusCode::kAborted, "REPLACED",
                          "another stream reads this request now");
}

absl::Status SlowReader() {
  return base::MakeStatus(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                          "the client did not read its stream for too long; the turn goes on");
}

absl::Status NoLongerKept(int64_t first) {
  return WithErrorInfo(
      Precondition("TOKENS_NOT_KEPT", "after_token",
                   absl::StrCat("the first tokens of this request are no longer kept; what is "
                                "comes after token ",
                                first)),
      "TOKENS_NOT_KEPT", {{"first_token", absl::StrCat(first)}});
}

bool EndedAsItShould(const v1::Finished& finished) {
  return finished.committed() || finished.reason() == v1::FINISH_REASON_STOP ||
         finished.reason() == v1::FINISH_REASON_LENGTH ||
         finished.reason() == v1::FINISH_REASON_TIME;
}

}  // namespace

// What the engine's output shard calls for one sequence. Keeps the record alive.
class RequestRecord::Sink final : public engine::ResponseSink {
 public:
  Sink(std::shared_ptr<RequestRecord> record, int index)
      : record_(std::move(record)), index_(index) {}

  void OnQueued(int64_t position) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->position = position;
      ++s->queued;
    });
  }
  void OnStarted(const engine::StartedEvent& event) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->started = ToProto(event, record_->spec_.request_id);
      s->started->set_index(index_);
    });
  }
  void OnPromptLogprobs(const engine::PromptLogprobsEvent& event) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->prompt.insert(s->prompt.end(), event.tokens.begin(), event.tokens.end());
    });
  }
  void OnProgress(const engine::ProgressEvent& event) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->latest_progress = event;
      ++s->progress;
    });
  }
  void OnOutput(std::vector<engine::TokenEvent> tokens, std::string) override {
    if (tokens.empty()) return;  // the rest of a code point: readers make it themselves
    record_->Tell(index_, [&](Sequence* s) { s->tokens.Append(tokens); });
  }
  void OnFinished(const engine::FinishedEvent& event) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->finished = ToProto(event);
      s->finished->set_index(index_);
      s->ended = true;
    });
  }
  void OnError(const absl::Status& status) override {
    record_->Tell(index_, [&](Sequence* s) {
      s->error = status;
      if (record_->spec_.sequences > 1) {
        s->failed = ToFailed(status);
        s->failed->set_index(index_);
      }
      s->ended = true;
    });
  }
  bool Writable() const override { return record_->Writable(index_); }

 private:
  const std::shared_ptr<RequestRecord> record_;
  const int index_;
};

RequestRecord::RequestRecord(RequestSpec spec,
                             std::function<void(std::shared_ptr<RequestRecord>)> on_end)
    : spec_(std::move(spec)),
      max_bytes_(std::max<int64_t>(1, spec_.limits.bytes / spec_.sequences)),
      on_end_(std::move(on_end)),
      running_(spec_.sequences) {
  for (int i = 0; i < spec_.sequences; ++i) {
    sequences_.push_back(std::make_unique<Sequence>(TokenLog(spec_.tokenizer, spec_.output)));
  }
}

// ---- the request

RequestRecord::Sinks RequestRecord::Begin(Canceller cancel) {
  Sinks sinks;
  for (int i = 0; i < spec_.sequences; ++i) {
    sinks.push_back(std::make_shared<Sink>(shared_from_this(), i));
  }
  const std::lock_guard lock(mu_);
  cancel_ = std::move(cancel);
  return sinks;
}

void RequestRecord::Refuse(const absl::Status& status) {
  for (int i = 0; i < spec_.sequences; ++i) {
    Tell(i, [&](Sequence* s) {
      s->error = status;
      s->ended = true;
    });
  }
}

// Changes what is known of a sequence, then lets the reader see it.
template <typename Change>
void RequestRecord::Tell(int index, Change change) {
  std::shared_ptr<RecordReader> wake;
  bool ended = false;
  {
    const std::lock_guard lock(mu_);
    Sequence* sequence = sequences_[index].get();
    change(sequence);
    ended = sequence->ended && --running_ == 0;
    CheckPace(sequence, index);
    const int64_t keep =
        reader_ == nullptr ? sequence->tokens.end() : reader_->places_[index].cursor.next;
    sequence->tokens.Trim(max_bytes_, keep);
    if (reader_ != nullptr && reader_->gate_.open()) wake = reader_;
  }
  if (ended) Ended();
  if (wake != nullptr) wake->OnReady();
}

void RequestRecord::Ended() {
  std::vector<std::function<void()>> then;
  Canceller cancel;  // what it holds is let go without the lock
  {
    const std::lock_guard lock(mu_);
    then.swap(when_ended_);
    cancel.swap(cancel_);
  }
  on_end_(shared_from_this());
  for (const std::function<void()>& call : then) call();
}

RequestRecord::Stage RequestRecord::stage() const {
  const std::lock_guard lock(mu_);
  if (running_ > 0) return ending_ ? Stage::kEnding : Stage::kRunning;
  bool counts = true;
  for (const auto& s : sequences_) {
    if (s->finished.has_value() && s->finished->committed()) return Stage::kKept;
    if (engine::CommittedVersion(s->error).has_value()) return Stage::kKept;
    counts = counts && s->finished.has_value() && EndedAsItShould(*s->finished);
  }
  return counts ? Stage::kKept : Stage::kUncommitted;
}

bool RequestRecord::Cancel() {
  Canceller cancel;
  {
    const std::lock_guard lock(mu_);
    cancel = cancel_;
  }
  return cancel != nullptr && cancel(/*by_client=*/true);
}

bool RequestRecord::WhenEnded(std::function<void()> then) {
  const std::lock_guard lock(mu_);
  if (running_ == 0) return false;
  when_ended_.push_back(std::move(then));
  return true;
}

// ---- the pace of the reader

bool RequestRecord::SlowForTooLong(const Sequence& sequence) const {
  const int64_t since = sequence.slow_since_ns.load(std::memory_order_relaxed);
  return since != 0 && engine::MonotonicNow() - absl::FromUnixNanos(since) >=
                           kBeforeTheEngine * spec_.limits.reader_age;
}

bool RequestRecord::Writable(int index) const {
  const Sequence& sequence = *sequences_[index];
  if (sequence.slow_since_ns.load(std::memory_order_relaxed) == 0) return true;
  return spec_.finish && SlowForTooLong(sequence);  // the next token turns the reader away
}

void RequestRecord::CheckPace(Sequence* sequence, int index) {
  if (reader_ == nullptr) return;
  const int64_t behind = sequence->tokens.end() - reader_->places_[index].cursor.next;
  if (behind < spec_.limits.reader_tokens) {
    sequence->slow_since_ns.store(0, std::memory_order_relaxed);
  } else if (sequence->slow_since_ns.load(std::memory_order_relaxed) == 0) {
    sequence->slow_since_ns.store(absl::ToUnixNanos(engine::MonotonicNow()),
                                  std::memory_order_relaxed);
  } else if (spec_.finish && running_ > 0 && SlowForTooLong(*sequence)) {
    reader_->gate_.Drop(SlowReader());
    Detach();
    unread_ = true;
  }
}

void RequestRecord::Detach() {
  reader_ = nullptr;
  for (const auto& sequence : sequences_) {
    sequence->slow_since_ns.store(0, std::memory_order_relaxed);
  }
  TrimDropped();
}

// ---- reading

absl::Status RequestRecord::Kept(int64_t after_token) const {
  int64_t first = 0, end = 0;
  for (const auto& s : sequences_) {
    first = std::max(first, s->tokens.first());
    end = std::max(end, s->tokens.end());
  }
  if (after_token < first) return NoLongerKept(first);
  if (after_token > end) {
    return BadField("after_token", absl::StrCat("is ", after_token, ", but there are only ", end,
                                                " tokens so far"));
  }
  return absl::OkStatus();
}

absl::Status RequestRecord::Attach(std::shared_ptr<RecordReader> reader, int64_t after_token) {
  std::shared_ptr<RecordReader> old;
  {
    const std::lock_guard lock(mu_);
    SKEIN_RETURN_IF_ERROR(Kept(after_token));
    reader->places_.assign(sequences_.size(), {});
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& sequence = *sequences_[i];
      RecordReader::Place& place = reader->places_[i];
      place.cursor = sequence.tokens.At(std::min(after_token, sequence.tokens.end()));
      // Where it waits and how far its prompt is concerns a reader only until there are tokens.
      if (sequence.started.has_value()) place.queued = sequence.queued;
      if (sequence.tokens.end() > 0) place.progress = sequence.progress;
      if (after_token > 0) place.prompt = static_cast<int64_t>(sequence.prompt.size());
    }
    if (running_ > 0) {  // what has ended any number may read
      old = std::move(reader_);
      if (old != nullptr) old->gate_.Drop(Replaced());
      Detach();
      reader_ = std::move(reader);
      unread_ = false;
      for (size_t i = 0; i < sequences_.size(); ++i) {
        CheckPace(sequences_[i].get(), static_cast<int>(i));
      }
    }
  }
  if (old != nullptr) old->OnReady();
  return absl::OkStatus();
}

std::optional<v1::GenerateResponse> RequestRecord::TakeFrom(int index, RecordReader::Place* place) {
  Sequence& s = *sequences_[index];
  v1::GenerateResponse response;
  if (place->queued < s.queued && !place->started) {
    place->queued = s.queued;
    response.mutable_queued()->set_position(s.position);
    return response;
  }
  if (s.started.has_value() && !place->started) {
    place->started = true;
    *response.mutable_started() = *s.started;
    return response;
  }
  if (place->progress < s.progress) {
    place->progress = s.progress;
    response.mutable_progress()->set_prefill_done(s.latest_progress.done);
    response.mutable_progress()->set_prefill_total(s.latest_progress.total);
    return response;
  }
  if (place->prompt < static_cast<int64_t>(s.prompt.size())) {
    *response.mutable_prompt_logprobs() = TakePrompt(s, &place->prompt);
    return response;
  }
  v1::Delta* delta = response.mutable_delta();
  delta->set_index(index);
  const auto visible = [&] {
    return !delta->text().empty() || !delta->reasoning().empty() || delta->tokens_size() > 0;
  };
  while (place->cursor.next < s.tokens.end()) {
    s.tokens.Read(&place->cursor, kDeltaTokens, delta);
    if (visible()) return response;
  }
  if (s.ended && !place->rest) {
    place->rest = true;
    s.tokens.ReadRest(&place->cursor, delta);
    if (visible()) return response;
  }
  const std::optional<v1::Finished>& end = s.finished.has_value() ? s.finished : s.failed;
  if (end.has_value() && !place->finished) {
    place->finished = true;
    *response.mutable_finished() = *end;
    return response;
  }
  return std::nullopt;
}

v1::PromptLogprobs RequestRecord::TakePrompt(const Sequence& sequence, int64_t* next) const {
  const int64_t end = std::min(static_cast<int64_t>(sequence.prompt.size()), *next + kDeltaTokens);
  v1::PromptLogprobs out;
  out.set_first(*next);
  for (; *next < end; ++*next) {
    const kernels::TokenValue& scored = sequence.prompt[*next];
    const absl::string_view bytes = spec_.tokenizer->Bytes(scored.token);
    v1::Token* token = out.add_tokens();
    token->set_id(scored.token);
    token->set_bytes(bytes.data(), bytes.size());
    if (!std::isnan(scored.value)) token->set_logprob(scored.value);
  }
  return out;
}

std::optional<v1::GenerateResponse> RequestRecord::Take(RecordReader* reader) {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const size_t index = (reader->turn_ + i) % sequences_.size();
    std::optional<v1::GenerateResponse> event =
        TakeFrom(static_cast<int>(index), &reader->places_[index]);
    if (!event.has_value()) continue;
    reader->turn_ = index + 1;
    if (reader_.get() == reader) CheckPace(sequences_[index].get(), static_cast<int>(index));
    return event;
  }
  return std::nullopt;
}

bool RequestRecord::AllRead(const RecordReader& reader) const {
  if (running_ > 0) return false;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    const Sequence& s = *sequences_[i];
    const RecordReader::Place& place = reader.places_[i];
    if (place.cursor.next < s.tokens.end() || !place.rest) return false;
    if (place.prompt < static_cast<int64_t>(s.prompt.size())) return false;
    if ((s.finished.has_value() || s.failed.has_value()) && !place.finished) return false;
  }
  return true;
}

// An error of one sequence is that one's; when none came to an end it is the stream's.
absl::Status RequestRecord::EndStatus() const {
  absl::Status error;
  for (const auto& s : sequences_) {
    if (s->finished.has_value()) return absl::OkStatus();
    if (error.ok()) error = s->error;
  }
  const std::optional<int64_t> version = engine::CommittedVersion(error);
  if (!version.has_value()) return error;
  return WithErrorInfo(error, ReasonOf(error),
                       {{"committed", "true"}, {"version", absl::StrCat(*version)}});
}

RequestRecord::Action RequestRecord::NextLocked(RecordReader* reader) {
  WriteGate& gate = reader->gate_;
  if (!gate.open()) return Action();
  // The window may have dropped the tokens of an ended request under its reader.
  for (size_t i = 0; i < sequences_.size() && !gate.dropped(); ++i) {
    const int64_t first = sequences_[i]->tokens.first();
    if (reader->places_[i].cursor.next < first) gate.Drop(NoLongerKept(first));
  }
  std::optional<v1::GenerateResponse> event;
  if (!gate.dropped()) event = Take(reader);
  const bool last = gate.dropped() || AllRead(*reader);
  if (last) gate.End(EndStatus());
  Action action = gate.Next(std::move(event), last);
  if (gate.finished() && reader_.get() == reader) Detach();
  return action;
}

RequestRecord::Action RequestRecord::Next(RecordReader& reader) {
  const std::lock_guard lock(mu_);
  return NextLocked(&reader);
}

RequestRecord::Action RequestRecord::WriteDone(RecordReader& reader) {
  const std::lock_guard lock(mu_);
  reader.gate_.WriteDone(true);
  return NextLocked(&reader);
}

RequestRecord::Action RequestRecord::Gone(RecordReader& reader, absl::Status status, bool end_turn,
                                          bool in_write) {
  Canceller cancel;
  Action action;
  {
    const std::lock_guard lock(mu_);
    if (in_write) reader.gate_.WriteDone(false);
    reader.gate_.Drop(std::move(status));
    if (reader_.get() == &reader) {
      Detach();
      unread_ = running_ > 0;
      if (running_ > 0 && !spec_.finish) {
        ending_ = true;
        if (end_turn) cancel = cancel_;
      }
    }
    action = NextLocked(&reader);
  }
  if (cancel != nullptr) cancel(/*by_client=*/false);
  return action;
}

// ---- what is kept

bool RequestRecord::unread() const {
  const std::lock_guard lock(mu_);
  return unread_;
}

int64_t RequestRecord::bytes() const {
  const std::lock_guard lock(mu_);
  int64_t bytes = 0;
  for (const auto& s : sequences_) {
    bytes += s->tokens.bytes();
    bytes += static_cast<int64_t>(s->prompt.size() * sizeof(kernels::TokenValue));
  }
  return bytes;
}

void RequestRecord::DropTokens() {
  const std::lock_guard lock(mu_);
  dropped_ = true;
  TrimDropped();
}

void RequestRecord::TrimDropped() {
  if (!dropped_) return;
  for (size_t i = 0; i < sequences_.size(); ++i) {
    Sequence* s = sequences_[i].get();
    s->tokens.Trim(0, reader_ == nullptr ? s->tokens.end() : reader_->places_[i].cursor.next);
    if (reader_ == nullptr) s->prompt = {};
  }
}

RecordSummary RequestRecord::summary() const {
  const std::lock_guard lock(mu_);
  RecordSummary out;
  out.ended = running_ == 0;
  out.status = out.ended ? EndStatus() : absl::OkStatus();
  for (const auto& s : sequences_) {
    out.completion_tokens += s->tokens.end();
    if (!out.finished.has_value()) out.finished = s->finished;
  }
  out.started = sequences_[0]->started.has_value();
  return out;
}

}  // namespace skein::server
