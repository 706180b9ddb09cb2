// Requests that wait for a busy conversation.

#include <gmock/gmock.h>

#include "engine/base/status.h"
#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::StartsWith;

struct WaitTest : ::testing::Test {
  void SetUp() override {
    h.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  }
  // Writes to the conversation until it is cancelled.
  std::shared_ptr<CollectingSink> Hold(const std::string& id) {
    GenerateRequest request = h.Request({1, 2}, id);
    request.request_id = "holder";
    request.stopping.max_tokens = 1 << 20;
    request.commit = CommitMode::kKeepPartial;
    auto sink = h.Submit(request);
    sink->WaitForTokens(1);
    return sink;
  }
  void LetGo(const std::shared_ptr<CollectingSink>& holder) {
    EXPECT_TRUE(h.engine->Cancel("holder", true));
    holder->Wait();
  }
  GenerateRequest Waiting(std::vector<int32_t> input, const std::string& id) {
    GenerateRequest request = h.Request(std::move(input), id);
    request.wait_if_busy = true;
    return request;
  }
  void ExpectNothingLeft() {
    const EngineGauges gauges = h.engine->gauges();
    EXPECT_EQ(gauges.waiting, 0);
    EXPECT_EQ(gauges.waiting_tokens, 0);
    EXPECT_EQ(gauges.running, 0);
    EXPECT_EQ(gauges.slots_used, 0);
    EXPECT_EQ(gauges.store.waiting, 0);
  }
  Harness h;
};

TEST_F(WaitTest, TurnsFollowInTheOrderOfArrival) {
  h.Start();
  const auto holder = Hold("c");
  EXPECT_EQ(base::Reason(h.Refused(h.Request({3}, "c"))), "CONVERSATION_BUSY");
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(h.Submit(Waiting({10 + i}, "c")));
  EXPECT_EQ(h.engine->gauges().waiting, 5);
  EXPECT_EQ(h.store->Get({"", "c"})->waiting, 5);
  EXPECT_EQ(base::Reason(h.Refused(h.Request({3}, "c"))), "CONVERSATION_BUSY");
  LetGo(holder);
  for (int i = 0; i < 5; ++i) {
    sinks[i]->Wait();
    ASSERT_TRUE(sinks[i]->finished.has_value()) << sinks[i]->error;
    EXPECT_EQ(sinks[i]->finished->version, 2 + i);
    EXPECT_EQ(sinks[i]->started->version, 1 + i);
    EXPECT_THAT(sinks[i]->log, Contains(StartsWith("queued")));
  }
  h.model.before_step = nullptr;
  h.ExpectExact("c");
  ExpectNothingLeft();
}

TEST_F(WaitTest, DoesNotWaitWhenNobodyWrites) {
  h.Start();
  const auto sink = h.Run(Waiting({1, 2}, "c"));
  EXPECT_EQ(sink->finished->version, 1);
  EXPECT_TRUE(sink->started->created);
}

TEST_F(WaitTest, EndsAsItWouldInTheQueue) {
  h.Start();
  const auto holder = Hold("c");
  GenerateRequest cancelled = Waiting({1}, "c");
  const auto by_client = h.Submit(cancelled);
  EXPECT_TRUE(h.engine->Cancel(cancelled.request_id, true));
  by_client->Wait();
  EXPECT_EQ(by_client->finished->reason, FinishReason::kCancelled);
  EXPECT_FALSE(by_client->finished->committed);

  GenerateRequest dropped = Waiting({1}, "c");
  const auto by_transport = h.Submit(dropped);
  EXPECT_TRUE(h.engine->Cancel(dropped.request_id, false));
  by_transport->Wait();
  EXPECT_EQ(by_transport->error.code(), absl::StatusCode::kCancelled);

  GenerateRequest late = Waiting({1}, "c");
  late.deadline = absl::Now() + absl::Milliseconds(500);
  EXPECT_EQ(h.Run(late)->error.code(), absl::StatusCode::kDeadlineExceeded);

  GenerateRequest timed = Waiting({1}, "c");
  timed.stopping.max_time = absl::Milliseconds(30);
  EXPECT_EQ(h.Run(timed)->finished->reason, FinishReason::kTime);
  LetGo(holder);
  EXPECT_EQ(h.store->Get({"", "c"})->head, 1);
  ExpectNothingLeft();
}

TEST_F(WaitTest, WhatIsWrongShowsWhenTheTurnHasCome) {
  h.Start();
  const auto holder = Hold("c");
  GenerateRequest guarded = Waiting({1}, "c");
  guarded.expected_version = 7;
  GenerateRequest based = Waiting({1}, "c");
  based.base_version = 7;
  GenerateRequest nothing = Waiting({}, "c");
  nothing.base_version = 0;
  const auto bad_version = h.Submit(guarded);
  const auto bad_base = h.Submit(based);
  const auto empty = h.Submit(nothing);
  const auto good = h.Submit(Waiting({5}, "c"));
  LetGo(holder);
  for (const auto& sink : {bad_version, bad_base, empty, good}) sink->Wait();
  EXPECT_EQ(base::Reason(bad_version->error), "VERSION_MISMATCH");
  EXPECT_EQ(base::Reason(bad_base->error), "VERSION_NOT_FOUND");
  EXPECT_EQ(empty->error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(good->finished->version, 2);
  ExpectNothingLeft();
}

TEST_F(WaitTest, LinesAreBounded) {
  h.options.max_queued = 3;
  h.store_options.max_waiting = 2;
  h.Start();
  const auto holder = Hold("c");
  const auto first = h.Submit(Waiting({1}, "c"));
  const auto second = h.Submit(Waiting({1}, "c"));
  EXPECT_EQ(base::Reason(h.Refused(Waiting({1}, "c"))), "CONVERSATION_BUSY");
  EXPECT_EQ(h.engine->gauges().waiting, 2);
  // They count for the queue.
  const auto other = h.Submit(Waiting({1}, "d"));
  other->Wait();
  LetGo(holder);
  first->Wait();
  second->Wait();
  ExpectNothingLeft();
}

TEST_F(WaitTest, TheQueueBoundsThem) {
  h.options.max_queued = 2;
  h.Start();
  const auto holder = Hold("c");
  const auto first = h.Submit(Waiting({1}, "c"));
  const auto second = h.Submit(Waiting({1}, "c"));
  EXPECT_EQ(base::Reason(h.Refused(Waiting({1}, "c"))), "QUEUE_FULL");
  LetGo(holder);
  first->Wait();
  second->Wait();
}

TEST_F(WaitTest, ADrainLetsThemRunUntilItsDeadline) {
  h.Start();
  auto holder = Hold("c");
  auto waiting = h.Submit(Waiting({1}, "c"));
  h.engine->Drain(absl::Now() + absl::Milliseconds(50));
  waiting->Wait();
  EXPECT_EQ(waiting->finished->reason, FinishReason::kDrained);
  h.engine->Undrain();
  holder = Hold("c");
  waiting = h.Submit(Waiting({1}, "c"));
  h.engine->Cancel("holder", true);
  h.engine->Drain(absl::Now() + kPatience);
  waiting->Wait();
  EXPECT_EQ(waiting->finished->reason, FinishReason::kLength);
  ExpectNothingLeft();
}

TEST_F(WaitTest, TheEngineStopsWithWaitersInLine) {
  h.Start();
  const auto holder = Hold("c");
  const auto waiting = h.Submit(Waiting({1}, "c"));
  h.engine.reset();
  waiting->Wait();
  EXPECT_EQ(waiting->error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(h.store->gauges().waiting, 0);
}

TEST_F(WaitTest, EnginesThatShareAStoreWaitForEachOther) {
  h.Start();
  FakeParts parts({});
  auto other = Engine::Create(parts.model, TestDevice(), parts.tokenizer, kFingerprint, h.options,
                              *h.store, nullptr);
  ASSERT_TRUE(other.ok()) << other.status();
  const auto holder = Hold("c");
  const auto sink = std::make_shared<CollectingSink>();
  ASSERT_TRUE((*other)->Submit(Waiting({3}, "c"), sink).ok());
  LetGo(holder);
  sink->Wait();
  ASSERT_TRUE(sink->finished.has_value()) << sink->error;
  EXPECT_EQ(sink->finished->version, 2);
  h.model.before_step = nullptr;
  h.ExpectExact("c");
}

TEST_F(WaitTest, ModelsMismatchOrRebuild) {
  h.Start();
  FakeParts parts({});
  auto other = Engine::Create(parts.model, TestDevice(), parts.tokenizer, kFingerprint + 1,
                              h.options, *h.store, nullptr);
  ASSERT_TRUE(other.ok()) << other.status();
  h.Run(h.Request({1, 2, 3}, "c"));
  GenerateRequest request = h.Request({4}, "c");
  const absl::Status refused = (*other)->Submit(request, std::make_shared<CollectingSink>());
  EXPECT_EQ(base::Reason(refused), "MODEL_MISMATCH");
  request.on_model_mismatch = OnModelMismatch::kRebuild;
  const auto sink = std::make_shared<CollectingSink>();
  ASSERT_TRUE((*other)->Submit(request, sink).ok());
  sink->Wait();
  EXPECT_EQ(sink->started->restored_from, "tokens");
  EXPECT_EQ(sink->started->tokens_reused, 0);
  EXPECT_EQ(sink->finished->version, 2);
  h.ExpectExact("c", 1);
  // The two models are equal but for their names.
  std::vector<int32_t> all = h.Tokens("c", 1);
  all.push_back(4);
  EXPECT_EQ(sink->tokens(), h.OneShot(all, 4));
}

}  // namespace
}  // namespace skein::engine
