#pragma once
// One Generate request as it is remembered: all that its sinks were told, and who reads it. A
// stream is a reader of a record, so that a retry, Attach and a turn whose client is gone need
// nothing of their own. At most one reader at a time: a newer one takes the place of the one
// before.
//
// What a reader has not read yet stays here and nowhere else. A reader that falls behind by
// `reader_tokens` pauses the request (Writable); without a reader nothing pauses it, and the oldest
// tokens go when there are more than `bytes`.
//
// No gRPC inside. Thread-safe; all that is called back is called without the lock.

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/request.h"
#include "server/outbox.h"
#include "server/request_log_options.h"
#include "server/token_log.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

using Fingerprint = std::array<uint8_t, 32>;

// What is known of a request before it runs.
struct RequestSpec {
  std::string tenant, request_id;
  Fingerprint fingerprint{};  // of all that it asks for
  std::string model;          // for the log
  std::string conversation_id;
  OutputChoice output;
  int32_t sequences = 1;
  bool finish = false;  // on_disconnect FINISH: goes on when its reader is gone
  std::shared_ptr<const engine::Tokenizer> tokenizer;
  RecordLimits limits;
};

class RequestRecord;

// Who reads a record: a stream. Shared by the record while it is the one that reads, and by the
// transport.
class RecordReader {
 public:
  virtual ~RecordReader() = default;
  // There may be something to do: carry out record->Next(*this). Any thread, no lock held.
  virtual void OnReady() = 0;

 private:
  friend class RequestRecord;
  struct Place {                       // in one sequence
    int64_t queued = 0, progress = 0;  // the newest ones that were seen
    int64_t prompt = 0;                // input tokens whose log-probabilities were seen
    bool started = false, rest = false, finished = false;
    TokenLog::Cursor cursor;
  };
  // Guarded by the lock of the record.
  WriteGate gate_;
  std::vector<Place> places_;
  size_t turn_ = 0;  // the sequence to look at first, so that none starves
};

// How a request went, for the log.
struct RecordSummary {
  bool ended = false;
  absl::Status status;                   // what the stream ends with
  std::optional<v1::Finished> finished;  // of the first sequence that has one
  bool started = false;                  // it had a slot
  int64_t completion_tokens = 0;         // of all sequences
};

class RequestRecord final : public std::enable_shared_from_this<RequestRecord> {
 public:
  using Action = WriteAction<v1::GenerateResponse>;
  using Sinks = std::vector<std::shared_ptr<engine::ResponseSink>>;
  // Asks the engine to end it; false: it has ended.
  using Canceller = std::function<bool(bool by_client)>;

  enum class Stage {
    kRunning,
    kEnding,       // its client is gone and it is about to end: a retry waits for that
    kKept,         // it ended and counts: committed, or finished as it should
    kUncommitted,  // it ended and left nothing: a retry runs it again
  };

  // `on_end` is called once, by the thread that ends the request.
  RequestRecord(RequestSpec spec, std::function<void(std::shared_ptr<RequestRecord>)> on_end);

  const RequestSpec& spec() const { return spec_; }
  Stage stage() const;

  // Once, before the request is submitted: one sink a sequence. `cancel` is kept until the end.
  Sinks Begin(Canceller cancel);
  // It was refused at submission: whoever reads it meanwhile learns why.
  void Refuse(const absl::Status& status);
  // The Cancel RPC. False: it does not run.
  bool Cancel();
  // `then` is called once it has ended, by the thread that ends it. False: it has already.
  bool WhenEnded(std::function<void()> then);

  // From now on `reader` reads, after token `after_token` of each sequence; call its OnReady once
  // it can take actions. FAILED_PRECONDITION: those tokens are no longer kept.
  absl::Status Attach(std::shared_ptr<RecordReader> reader, int64_t after_token);
  // What the reader has to do now.
  Action Next(RecordReader& reader);
  Action WriteDone(RecordReader& reader);
  // The reader's transport is gone, which a write that failed says too (`in_write`). `end_turn`:
  // unless the turn is to be finished, it is cancelled; false when the engine ends it by itself
  // (its deadline).
  Action Gone(RecordReader& reader, absl::Status status, bool end_turn, bool in_write = false);

  // Its reader went away before its end, and none has come since.
  bool unread() const;
  int64_t bytes() const;
  // Of an ended one: only how it ended stays, and what the stream that it ran for has yet to send.
  void DropTokens();
  RecordSummary summary() const;

 private:
  class Sink;
  struct Sequence {
    explicit Sequence(TokenLog log) : tokens(std::move(log)) {}
    int64_t queued = 0, progress = 0;  // how many of them came
    int64_t position = 0;
    engine::ProgressEvent latest_progress;
    std::vector<kernels::TokenValue> prompt;  // log-probabilities of the input, when asked for
    std::optional<v1::Started> started;
    TokenLog tokens;
    bool ended = false;
    std::optional<v1::Finished> finished;
    std::optional<v1::Finished> failed;  // `error`, where there are several sequences
    absl::Status error;
    // Written under the lock, read by the engine thread without it.
    std::atomic<int64_t> slow_since_ns{0};  // 0: the reader keeps up, or there is none
  };

  bool Writable(int index) const;  // lock-free
  bool SlowForTooLong(const Sequence& sequence) const;
  template <typename Change>
  void Tell(int index, Change change);
  void Ended();
  void CheckPace(Sequence* sequence, int index) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Detach() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TrimDropped() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Kept(int64_t after_token) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<v1::GenerateResponse> Take(RecordReader* reader) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<v1::GenerateResponse> TakeFrom(int index, RecordReader::Place* place)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  v1::PromptLogprobs TakePrompt(const Sequence& sequence, int64_t* next) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AllRead(const RecordReader& reader) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Action NextLocked(RecordReader* reader) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status EndStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RequestSpec spec_;
  const int64_t max_bytes_;  // of one sequence
  const std::function<void(std::shared_ptr<RequestRecord>)> on_end_;

  mutable std::mutex mu_;
  // As many as spec_.sequences from the start; their atomics are read without the lock.
  std::vector<std::unique_ptr<Sequence>> sequences_;
  int32_t running_ ABSL_GUARDED_BY(mu_);
  bool ending_ ABSL_GUARDED_BY(mu_) = false;
  bool unread_ ABSL_GUARDED_BY(mu_) = false;
  bool dropped_ ABSL_GUARDED_BY(mu_) = false;                  // DropTokens was called
  std::shared_ptr<RecordReader> reader_ ABSL_GUARDED_BY(mu_);  // see RecordReader
  Canceller cancel_ ABSL_GUARDED_BY(mu_);
  std::vector<std::function<void()>> when_ended_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
