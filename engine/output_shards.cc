#include "engine/output_shards.h"

#include <pthread.h>

#include <utility>

namespace skein::engine {
namespace {

// A shard that is this many tokens behind counts as a slow reader: the row pauses until it has
// caught up.
constexpr int32_t kMostUndelivered = 256;

template <typename... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <typename... F>
Overloaded(F...) -> Overloaded<F...>;

}  // namespace

bool OutputStream::Writable() const {
  return undelivered_.load(std::memory_order_relaxed) < kMostUndelivered &&
         (sink_ == nullptr || sink_->Writable());
}

OutputShards::OutputShards(const Tokenizer& tokenizer, int shards, int rows)
    : tokenizer_(tokenizer) {
  const size_t step =
      static_cast<size_t>(rows) * 16;  // more than a token a row only when held ones are released
  const size_t capacity = static_cast<size_t>(rows) * kMostUndelivered + step;
  for (int i = 0; i < shards; ++i) {
    shards_.push_back(std::make_unique<Shard>());
    Shard* shard = shards_.back().get();
    shard->collected.reserve(step);
    shard->inbox.reserve(capacity);
    shard->thread = std::thread([this, shard, capacity] { Run(shard, capacity); });
  }
}

OutputShards::~OutputShards() {
  for (auto& shard : shards_) {
    {
      std::lock_guard<std::mutex> lock(shard->mu);
      shard->stop = true;
    }
    shard->wake.notify_one();
    shard->thread.join();
  }
}

void OutputShards::Post(const std::shared_ptr<OutputStream>& stream, OutputEvent event) {
  if (std::holds_alternative<TokenEvent>(event)) {
    stream->undelivered_.fetch_add(1, std::memory_order_relaxed);
  }
  shards_[stream->shard_]->collected.push_back({stream, std::move(event)});
}

void OutputShards::Flush() {
  for (auto& shard : shards_) {
    if (shard->collected.empty()) continue;
    {
      std::lock_guard<std::mutex> lock(shard->mu);
      for (Item& item : shard->collected) shard->inbox.push_back(std::move(item));
    }
    shard->wake.notify_one();
    shard->collected.clear();
  }
}

void OutputShards::WaitUntilDelivered() {
  for (auto& shard : shards_) {
    std::unique_lock<std::mutex> lock(shard->mu);
    shard->idle.wait(lock, [&] { return shard->inbox.empty() && !shard->busy; });
  }
}

void OutputShards::Run(Shard* shard, size_t capacity) {
  pthread_setname_np(pthread_self(), "skein-output");
  std::vector<Item> items;
  items.reserve(capacity);
  std::unique_lock<std::mutex> lock(shard->mu);
  while (true) {
    shard->wake.wait(lock, [&] { return !shard->inbox.empty() || shard->stop; });
    if (shard->inbox.empty()) return;
    items.swap(shard->inbox);
    shard->busy = true;
    lock.unlock();
    Deliver(&items);
    items.clear();  // may destroy streams and sinks
    lock.lock();
    shard->busy = false;
    if (shard->inbox.empty()) shard->idle.notify_all();
  }
}

void OutputShards::Deliver(std::vector<Item>* items) {
  for (Item& item : *items) DeliverEvent(*item.stream, item.event);
  // Tokens of one stream that piled up go to its sink in one call.
  for (Item& item : *items) FlushText(*item.stream);
}

void OutputShards::FlushText(OutputStream& stream) {
  if (stream.tokens_.empty() && stream.text_.empty()) return;
  stream.undelivered_.fetch_sub(stream.taken_, std::memory_order_relaxed);
  stream.taken_ = 0;
  stream.sink_->OnOutput(std::move(stream.tokens_), std::move(stream.text_));
  stream.tokens_.clear();
  stream.text_.clear();
}

void OutputShards::DeliverEvent(OutputStream& stream, OutputEvent& event) {
  if (TokenEvent* token = std::get_if<TokenEvent>(&event)) {
    stream.utf8_.Push(tokenizer_.Bytes(token->token), &stream.text_);
    stream.tokens_.push_back(std::move(*token));
    ++stream.taken_;
    return;
  }
  const bool last = std::holds_alternative<std::unique_ptr<FinishedEvent>>(event) ||
                    std::holds_alternative<absl::Status>(event) ||
                    std::holds_alternative<Usage>(event);
  if (last && stream.sink_ != nullptr) stream.utf8_.Finish(&stream.text_);
  FlushText(stream);
  std::visit(Overloaded{
                 [&](TokenEvent&) {},
                 [&](QueuedEvent& e) { stream.sink_->OnQueued(e.position); },
                 [&](std::unique_ptr<StartedEvent>& e) { stream.sink_->OnStarted(*e); },
                 [&](ProgressEvent& e) { stream.sink_->OnProgress(e); },
                 [&](PromptLogprobsEvent& e) { stream.sink_->OnPromptLogprobs(e); },
                 [&](std::unique_ptr<FinishedEvent>& e) { stream.sink_->OnFinished(*e); },
                 [&](absl::Status& e) {
                   stream.sink_ != nullptr ? stream.sink_->OnError(e)
                                           : stream.score_sink_->OnError(e);
                 },
                 [&](ScoreEvent& e) { stream.score_sink_->OnScores(e); },
                 [&](std::shared_ptr<const ScorePrompt>& e) {
                   stream.score_sink_->OnPrompt(std::move(e));
                 },
                 [&](Usage& e) { stream.score_sink_->OnFinished(e); },
             },
             event);
  if (last) {
    stream.sink_ = nullptr;
    stream.score_sink_ = nullptr;
  }
}

}  // namespace skein::engine
