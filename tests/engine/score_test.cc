#include <gmock/gmock.h>

#include <cmath>

#include "engine/base/status.h"
#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

class ScoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    h_.options.slots = 4;  // and so 4 rows of logits a step
    h_.Start();
  }
  ScoreRequest Request(std::vector<int32_t> prompt, std::vector<int32_t> continuation,
                       std::string conversation = "") {
    ScoreRequest request;
    request.request_id = absl::StrCat("s", next_++);
    request.conversation_id = std::move(conversation);
    request.prompt = std::move(prompt);
    request.continuation = std::move(continuation);
    return request;
  }
  std::shared_ptr<CollectingScoreSink> Submit(const ScoreRequest& request) {
    auto sink = std::make_shared<CollectingScoreSink>();
    const absl::Status status = h_.engine->Submit(request, sink);
    EXPECT_TRUE(status.ok()) << status;
    return sink;
  }
  std::shared_ptr<CollectingScoreSink> Run(const ScoreRequest& request) {
    auto sink = Submit(request);
    sink->Wait();
    return sink;
  }
  absl::Status Refused(const ScoreRequest& request) {
    return h_.engine->Submit(request, std::make_shared<CollectingScoreSink>());
  }
  Harness h_;
  int next_ = 0;
};

TEST_F(ScoreTest, EqualsWhatSamplingReports) {
  GenerateRequest request = h_.Request({1, 2, 3});
  request.stopping.max_tokens = 30;
  request.want_logprobs = true;
  request.sampling.temperature = 1;
  request.sampling.seed = 4;
  request.top_logprobs = 1;
  const auto generated = h_.Run(request);
  const auto scored = Run(Request({1, 2, 3}, generated->tokens()));
  ASSERT_TRUE(scored->usage.has_value()) << scored->error;
  ASSERT_EQ(scored->logprobs.size(), 30u);
  EXPECT_GT(scored->chunks, 1);
  bool some_not_greedy = false;
  for (int i = 0; i < 30; ++i) {
    EXPECT_FLOAT_EQ(scored->logprobs[i], generated->events[i].logprob) << i;
    EXPECT_EQ(scored->greedy[i] != 0,
              generated->events[i].top[0].token == generated->events[i].token)
        << i;
    some_not_greedy |= scored->greedy[i] == 0;
  }
  EXPECT_TRUE(some_not_greedy);
  EXPECT_EQ(scored->usage->prompt_tokens, 33);
}

TEST_F(ScoreTest, AfterAConversationThatDoesNotChange) {
  const auto turn = h_.Run(h_.Request({5, 6, 7}, "c"));
  const std::vector<int32_t> all = h_.Tokens("c");
  for (const std::vector<int32_t>& prompt : {std::vector<int32_t>{}, std::vector<int32_t>{9, 10}}) {
    const auto after = Run(Request(prompt, {11, 12, 13}, "c"));
    const auto whole = Run(Request(Join(all, prompt), {11, 12, 13}));
    ASSERT_EQ(after->logprobs.size(), 3u);
    EXPECT_EQ(after->logprobs, whole->logprobs);
  }
  EXPECT_EQ(h_.Tokens("c"), all);
  EXPECT_EQ(h_.engine->conversations().Get({"", "c"})->head, 1);
  ScoreRequest based = Request({5}, {6}, "c");
  based.base_version = 0;
  EXPECT_EQ(Run(based)->logprobs, Run(Request({5}, {6}))->logprobs);
}

TEST_F(ScoreTest, AfterAStopTheStateIsTakenFromBefore) {
  h_.model.script = [](int64_t consumed) { return consumed == 5 ? 0 : -1; };
  GenerateRequest request = h_.Request({5, 6, 7}, "c");
  request.stopping.ignore_eos = false;
  ASSERT_EQ(h_.Run(request)->finished->reason, FinishReason::kStop);
  h_.model.script = nullptr;
  EXPECT_EQ(Run(Request({}, {11, 12}, "c"))->logprobs,
            Run(Request(h_.Tokens("c"), {11, 12}))->logprobs);
}

// Scores of continuations after a prompt that was taken in once.
class SharedPrompt final : public CollectingScoreSink {
 public:
  void OnPrompt(std::shared_ptr<const ScorePrompt> given) override { prompt = std::move(given); }
  std::shared_ptr<const ScorePrompt> prompt;  // to be read after Wait
};

TEST_F(ScoreTest, AfterASharedPromptBitByBit) {
  h_.Run(h_.Request({5, 6, 7}, "c"));
  for (const std::string conversation : {"", "c"}) {
    for (const int length : {0, 1, 2, 40}) {
      if (conversation.empty() && length == 0) continue;
      std::vector<int32_t> prompt(length);
      for (int i = 0; i < length; ++i) prompt[i] = 30 + i * i % 50;
      ScoreRequest keep = Request(prompt, {}, conversation);
      keep.keep_prompt = true;
      const auto shared = std::make_shared<SharedPrompt>();
      ASSERT_TRUE(h_.engine->Submit(keep, shared).ok());
      shared->Wait();
      ASSERT_TRUE(shared->usage.has_value()) << shared->error;
      EXPECT_EQ(shared->chunks, 0);
      ASSERT_NE(shared->prompt, nullptr);
      EXPECT_EQ(shared->prompt->pending.size(), 1u);
      EXPECT_EQ(shared->usage->prompt_tokens, length);
      const int64_t fed = h_.model.tokens_fed;
      for (const std::vector<int32_t>& continuation :
           {std::vector<int32_t>{9}, {11, 12, 13}, std::vector<int32_t>(30, 8)}) {
        ScoreRequest request = Request({}, continuation);
        request.after = shared->prompt;
        EXPECT_EQ(Run(request)->logprobs,
                  Run(Request(prompt, continuation, conversation))->logprobs)
            << conversation << " " << length;
      }
      if (length == 40) {
        EXPECT_EQ(h_.model.tokens_fed - fed,
                  2 * (1 + 3 + 30) + 3 * (conversation.empty() ? 39 : 40));
      }
    }
  }
  EXPECT_EQ(h_.engine->conversations().Get({"", "c"})->head, 1);
}

TEST(ScoreQueueTest, AFullQueueRefusesNoneThatIsExempt) {
  Harness h;
  h.options.slots = 1;
  h.options.max_queued = 1;
  h.Start();
  GenerateRequest endless = h.Request({1});
  endless.stopping.max_tokens = 1 << 20;
  const auto running = h.Submit(endless);
  running->WaitForTokens(1);
  const auto waiting = h.Submit(h.Request({2}));
  ScoreRequest request;
  request.request_id = "score";
  request.prompt = {1, 2};
  request.continuation = {3};
  const auto sink = std::make_shared<CollectingScoreSink>();
  EXPECT_EQ(base::Reason(h.engine->Submit(request, sink)), "QUEUE_FULL");
  request.exempt = true;
  EXPECT_TRUE(h.engine->Submit(request, sink).ok());
  h.engine->Cancel(endless.request_id, true);
  sink->Wait();
  EXPECT_EQ(sink->logprobs.size(), 1u) << sink->error;
  waiting->Wait();
  h.engine->BeginDrain(absl::InfiniteFuture());
  EXPECT_EQ(base::Reason(h.engine->Submit(request, sink)), "DRAINING");
}

TEST_F(ScoreTest, LeaveToKeepPromptsIsBounded) {
  std::vector<std::shared_ptr<const void>> held;
  for (int i = 0; i < 4; ++i) held.push_back(h_.engine->LeaveToKeepPrompt());
  for (const auto& leave : held) EXPECT_NE(leave, nullptr);
  EXPECT_EQ(h_.engine->LeaveToKeepPrompt(), nullptr);
  EXPECT_EQ(h_.engine->LeaveToKeepPrompt(), nullptr);
  held.pop_back();
  held.push_back(h_.engine->LeaveToKeepPrompt());
  EXPECT_NE(held.back(), nullptr);
}

TEST_F(ScoreTest, ManyBesideGeneration) {
  GenerateRequest request = h_.Request({1, 2, 3});
  request.stopping.max_tokens = 200;
  const auto generated = h_.Submit(request);
  std::vector<std::shared_ptr<CollectingScoreSink>> sinks;
  for (int i = 0; i < 12; ++i)
    sinks.push_back(Submit(Request({1 + i, 2}, std::vector<int32_t>(20, 7))));
  for (int i = 0; i < 12; ++i) {
    sinks[i]->Wait();
    EXPECT_EQ(sinks[i]->logprobs, Run(Request({1 + i, 2}, std::vector<int32_t>(20, 7)))->logprobs)
        << i;
  }
  generated->Wait();
  EXPECT_EQ(generated->tokens(), h_.OneShot({1, 2, 3}, 200));
}

TEST_F(ScoreTest, Refusals) {
  EXPECT_EQ(Refused(Request({1}, {})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Refused(Request({}, {1})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Refused(Request({1}, {300})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Refused(Request({1}, {2}, "none")).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(h_.engine->conversations().Create({"", "empty"}).ok());
  EXPECT_EQ(Refused(Request({}, {2}, "empty")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.engine->gauges().waiting, 0);
}

TEST_F(ScoreTest, CancelDeadlineAndNaN) {
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  const std::vector<int32_t> many(100000, 7);
  const ScoreRequest cancelled = Request({1}, many);
  const auto sink = Submit(cancelled);
  EXPECT_TRUE(h_.engine->Cancel(cancelled.request_id, true));
  sink->Wait();
  EXPECT_EQ(sink->error.code(), absl::StatusCode::kCancelled);
  ScoreRequest late = Request({1}, many);
  late.deadline = absl::Now() + absl::Milliseconds(500);
  EXPECT_EQ(Run(late)->error.code(), absl::StatusCode::kDeadlineExceeded);
  h_.model.poison = 250;
  EXPECT_EQ(Run(Request({1, 250}, {5}))->error.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(Run(Request({1}, {5}))->logprobs.size(), 1u);
}

}  // namespace
}  // namespace skein::engine
