#pragma once
// An engine over the fake model, and sinks that remember what they were told.

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "gtest/gtest.h"
#include "tests/engine/fake_model.h"

namespace skein::engine {

inline constexpr absl::Duration kPatience = absl::Seconds(60);  // longer than any test should take

class CollectingSink final : public ResponseSink {
 public:
  void OnQueued(int64_t position) override { Note(absl::StrCat("queued ", position)); }
  void OnStarted(const StartedEvent& event) override {
    Note("started");
    std::lock_guard<std::mutex> lock(mu_);
    started = event;
    changed_.notify_all();
  }
  void OnProgress(const ProgressEvent& event) override {
    Note("progress");
    std::lock_guard<std::mutex> lock(mu_);
    progress.push_back(event);
  }
  void OnPromptLogprobs(const PromptLogprobsEvent& event) override {
    Note("prompt logprobs");
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_EQ(event.first, static_cast<int64_t>(prompt.size()));
    prompt.insert(prompt.end(), event.tokens.begin(), event.tokens.end());
  }
  void OnOutput(std::vector<TokenEvent> tokens, std::string text) override {
    Note("output");
    std::lock_guard<std::mutex> lock(mu_);
    for (TokenEvent& token : tokens) events.push_back(std::move(token));
    this->text += text;
    changed_.notify_all();
  }
  void OnFinished(const FinishedEvent& event) override {
    Note("finished");
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_FALSE(ended_);
    finished = event;
    ended_ = true;
    changed_.notify_all();
  }
  void OnError(const absl::Status& status) override {
    Note("error");
    std::lock_guard<std::mutex> lock(mu_);
    EXPECT_FALSE(ended_);
    error = status;
    ended_ = true;
    changed_.notify_all();
  }
  bool Writable() const override { return writable.load(); }

  // Waits for the last event; then the members may be read.
  void Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoSeconds(kPatience), [&] { return ended_; }))
        << "the request never ended; last event: " << (log.empty() ? "none" : log.back());
  }
  void WaitForTokens(size_t n) {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoSeconds(kPatience),
                                  [&] { return ended_ || events.size() >= n; }));
  }
  void WaitForStart() {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoSeconds(kPatience),
                                  [&] { return ended_ || started.has_value(); }));
  }
  // Waits until it has been told this so many times.
  void WaitForEvents(const std::string& what, int64_t n) {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoSeconds(kPatience), [&] {
      return std::count(log.begin(), log.end(), what) >= n;
    })) << what;
  }
  bool ended() {
    std::lock_guard<std::mutex> lock(mu_);
    return ended_;
  }
  size_t count() {
    std::lock_guard<std::mutex> lock(mu_);
    return events.size();
  }
  std::vector<int32_t> tokens() {
    std::lock_guard<std::mutex> lock(mu_);
    std::vector<int32_t> ids;
    for (const TokenEvent& event : events) ids.push_back(event.token);
    return ids;
  }

  std::atomic<bool> writable{true};
  std::vector<std::string> log;
  std::optional<StartedEvent> started;
  std::vector<ProgressEvent> progress;
  std::vector<kernels::TokenValue> prompt;
  std::vector<TokenEvent> events;
  std::string text;
  std::optional<FinishedEvent> finished;
  absl::Status error;

 private:
  void Note(std::string what) {
    std::lock_guard<std::mutex> lock(mu_);
    log.push_back(std::move(what));
    changed_.notify_all();
  }
  std::mutex mu_;
  std::condition_variable changed_;
  bool ended_ = false;
};

class CollectingScoreSink : public ScoreSink {
 public:
  void OnScores(const ScoreEvent& event) override {
    std::lock_guard<std::mutex> lock(mu_);
    logprobs.insert(logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    greedy.insert(greedy.end(), event.greedy.begin(), event.greedy.end());
    ++chunks;
  }
  void OnFinished(const Usage& u) override {
    std::lock_guard<std::mutex> lock(mu_);
    usage = u;
    ended_ = true;
    changed_.notify_all();
  }
  void OnError(const absl::Status& status) override {
    std::lock_guard<std::mutex> lock(mu_);
    error = status;
    ended_ = true;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(changed_.wait_for(lock, absl::ToChronoSeconds(kPatience), [&] { return ended_; }));
  }

  std::vector<float> logprobs;
  std::vector<uint8_t> greedy;
  int chunks = 0;
  std::optional<Usage> usage;
  absl::Status error;

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool ended_ = false;
};

inline kernels::Device& TestDevice() {
  static std::unique_ptr<kernels::Device> device = [] {
    std::string error;
    auto made = kernels::NewCpuDevice({.threads = 1, .tier = ""}, &error);
    SKEIN_CHECK(made != nullptr);
    return made;
  }();
  return *device;
}

inline constexpr uint64_t kFingerprint = 7;

// One engine over a model. Options are set before Start.
class EngineHarness {
 public:
  EngineHarness(Model& model, kernels::Device& device, const Tokenizer& tokenizer)
      : model_(model), device_(device), tokenizer_(tokenizer) {
    options.slots = 8;
    options.max_step_tokens = 64;
    options.max_prefill_chunk = 16;
  }
  void Start() {
    store = std::make_unique<ConversationStore>(store_options);
    auto made =
        Engine::Create(model_, device_, tokenizer_, kFingerprint, options, *store, observer);
    SKEIN_CHECK(made.ok());
    engine = std::move(*made);
  }

  // Greedy, four tokens, and so on: tests change what they are about.
  GenerateRequest Request(std::vector<int32_t> input, std::string conversation = "") {
    GenerateRequest request;
    request.request_id = absl::StrCat("r", next_id_++);
    request.conversation_id = std::move(conversation);
    request.create_if_missing = true;
    request.input = std::move(input);
    request.sampling.temperature = 0;
    request.stopping.max_tokens = 4;
    request.stopping.ignore_eos = true;
    return request;
  }
  std::shared_ptr<CollectingSink> Submit(const GenerateRequest& request) {
    auto sink = std::make_shared<CollectingSink>();
    const absl::Status status = engine->Submit(request, sink);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) sink->OnError(status);  // so that nobody waits for it
    return sink;
  }
  std::shared_ptr<CollectingSink> Run(const GenerateRequest& request) {
    auto sink = Submit(request);
    sink->Wait();
    return sink;
  }
  absl::Status Refused(const GenerateRequest& request) {
    return engine->Submit(request, std::make_shared<CollectingSink>());
  }
  // All tokens of a conversation at a version (the head when 0).
  std::vector<int32_t> Tokens(const std::string& id, int64_t version = 0) {
    const auto history = store->History({"", id});
    SKEIN_CHECK(history.ok());
    if (version == 0) version = store->Get({"", id})->head;
    std::vector<int32_t> tokens;
    while (version != 0) {
      for (const VersionInfo& v : *history) {
        if (v.id != version) continue;
        std::vector<int32_t> turn = v.input;
        turn.insert(turn.end(), v.output.begin(), v.output.end());
        tokens.insert(tokens.begin(), turn.begin(), turn.end());
        version = v.parent;
        break;
      }
    }
    return tokens;
  }
  // What greedy sampling gives after these tokens, in one stateless request.
  std::vector<int32_t> OneShot(const std::vector<int32_t>& tokens, int32_t n) {
    GenerateRequest request = Request(tokens);
    request.stopping.max_tokens = n;
    return Run(request)->tokens();
  }
  // The conversation's state is the exact function of its tokens: it goes on as a fresh run over
  // them does.
  void ExpectExact(const std::string& id, int64_t version = 0) {
    const std::vector<int32_t> all = Tokens(id, version);
    GenerateRequest request = Request({}, id);
    if (version != 0) request.base_version = version;
    request.commit = CommitMode::kNever;
    request.stopping.max_tokens = 6;
    EXPECT_EQ(Run(request)->tokens(), OneShot(all, 6))
        << "conversation " << id << " version " << version;
  }

  EngineOptions options;
  ConversationStoreOptions store_options;
  EngineObserver* observer = nullptr;
  std::unique_ptr<ConversationStore> store;  // outlives the engine
  std::unique_ptr<Engine> engine;

 private:
  Model& model_;
  kernels::Device& device_;
  const Tokenizer& tokenizer_;
  std::atomic<int> next_id_{1};
};

// One engine over a fake model, whose hooks are set before Start.
struct FakeParts {
  explicit FakeParts(const std::vector<std::string>& words)
      : tokenizer(words), model(tokenizer.vocab_size()) {}
  WordTokenizer tokenizer;
  FakeModel model;
};
class Harness : public FakeParts, public EngineHarness {
 public:
  explicit Harness(const std::vector<std::string>& words = {})
      : FakeParts(words), EngineHarness(model, TestDevice(), tokenizer) {}
};

inline std::vector<int32_t> Join(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace skein::engine
