#pragma once
// The way from the engine thread to the requests' sinks: threads that detokenize and call sinks, so
// that the engine thread never does. One request's events stay in order on one shard.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "engine/request.h"
#include "engine/tokenizer.h"

namespace skein::engine {

struct QueuedEvent {
  int64_t position = 0;
};
// Usage ends a score; FinishedEvent or absl::Status end any request. What comes once a request is
// behind a pointer, so that a token's event stays small.
using OutputEvent =
    std::variant<TokenEvent, QueuedEvent, ProgressEvent, PromptLogprobsEvent, ScoreEvent, Usage,
                 std::shared_ptr<const ScorePrompt>, absl::Status, std::unique_ptr<StartedEvent>,
                 std::unique_ptr<FinishedEvent>>;

// One request's sink and what its shard keeps for it. Owned by the request's sequence on the engine
// thread and by the events on their way, whichever lasts longer.
class OutputStream {
 public:
  OutputStream(std::shared_ptr<ResponseSink> sink, int shard)
      : sink_(std::move(sink)), shard_(shard) {}
  OutputStream(std::shared_ptr<ScoreSink> sink, int shard)
      : score_sink_(std::move(sink)), shard_(shard) {}

  // Engine thread, until the last event was posted: the reader keeps up.
  bool Writable() const;

 private:
  friend class OutputShards;
  // The shard lets go of the sink after the last event; from then on the engine thread does not
  // look at it.
  std::shared_ptr<ResponseSink> sink_;
  std::shared_ptr<ScoreSink> score_sink_;
  const int shard_;
  std::atomic<int32_t> undelivered_{0};  // tokens posted and not yet given to the sink

  // Shard thread only.
  Utf8Stream utf8_;
  std::vector<TokenEvent> tokens_;
  std::string text_;
  int32_t taken_ = 0;  // tokens of tokens_ that count as undelivered
};

class OutputShards {
 public:
  // `rows`: how many requests run at once; queues are sized for them, so that Post and Flush do not
  // allocate.
  OutputShards(const Tokenizer& tokenizer, int shards, int rows);
  ~OutputShards();  // delivers what was flushed, then joins
  OutputShards(const OutputShards&) = delete;
  OutputShards& operator=(const OutputShards&) = delete;

  template <typename Sink>
  std::shared_ptr<OutputStream> NewStream(std::shared_ptr<Sink> sink) {  // any thread
    return std::make_shared<OutputStream>(std::move(sink),
                                          static_cast<int>(next_++ % shards_.size()));
  }

  // Engine thread only. Post collects, Flush hands over: one lock a shard and step.
  void Post(const std::shared_ptr<OutputStream>& stream, OutputEvent event);
  void Flush();

  // Any thread: returns when all that was flushed before has been delivered.
  void WaitUntilDelivered();

 private:
  struct Item {
    std::shared_ptr<OutputStream> stream;
    OutputEvent event;
  };
  struct Shard {
    std::vector<Item> collected;  // engine thread only

    std::mutex mu;
    std::condition_variable wake, idle;
    std::vector<Item> inbox ABSL_GUARDED_BY(mu);
    bool busy ABSL_GUARDED_BY(mu) = false;
    bool stop ABSL_GUARDED_BY(mu) = false;
    std::thread thread;
  };
  void Run(Shard* shard, size_t capacity);
  void Deliver(std::vector<Item>* items);
  void DeliverEvent(OutputStream& stream, OutputEvent& event);
  void FlushText(OutputStream& stream);

  const Tokenizer& tokenizer_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> next_{0};
};

}  // namespace skein::engine
