// How requests end before their time, and what is committed then: cancel, deadline, max_time,
// drain, slow readers, full queues, shutdown.

#include <gmock/gmock.h>

#include <algorithm>
#include <thread>

#include "engine/base/status.h"
#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::IsEmpty;

constexpr int32_t kForever = 1000000;

ConversationStore& store(Harness& h) { return h.engine->conversations(); }

// Lets the engine thread run only as many steps as the test says.
class Gate {
 public:
  void Wait() {
    std::unique_lock<std::mutex> lock(mu_);
    arrived_ = true;
    changed_.notify_all();
    changed_.wait(lock, [&] { return steps_ > 0; });
    --steps_;
  }
  void Open(int steps = 1 << 30) {
    std::lock_guard<std::mutex> lock(mu_);
    steps_ = steps;
    arrived_ = false;
    changed_.notify_all();
  }
  // The engine thread stands before its next step.
  void WaitUntilClosed() {
    std::unique_lock<std::mutex> lock(mu_);
    ASSERT_TRUE(
        changed_.wait_for(lock, absl::ToChronoSeconds(kPatience), [&] { return closed(); }));
  }
  // False: this ended before that, and there may be no next step.
  bool WaitUntilClosedOrEnded(CollectingSink* sink) {
    std::unique_lock<std::mutex> lock(mu_);
    while (!closed() && !sink->ended()) changed_.wait_for(lock, std::chrono::milliseconds(1));
    return closed();
  }

 private:
  bool closed() const { return arrived_ && steps_ == 0; }

  std::mutex mu_;
  std::condition_variable changed_;
  int steps_ = 0;
  bool arrived_ = false;
};

class EndsTest : public ::testing::Test {
 protected:
  void Start() {
    h_.model.before_step = [this](const StepBatch&) { gate_.Wait(); };
    h_.Start();
  }
  ~EndsTest() override { gate_.Open(); }
  GenerateRequest Long(std::string conversation = "", std::vector<int32_t> input = {1, 2, 3}) {
    GenerateRequest request = h_.Request(std::move(input), std::move(conversation));
    request.stopping.max_tokens = kForever;
    return request;
  }
  Gate gate_;
  Harness h_;
};

std::vector<int32_t> Prompt(int n) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(1 + i % 250);
  return prompt;
}

// ---- commit modes x ends x where the request was

enum class Where { kQueue, kPrefill, kDecode };
enum class How { kCancel, kDisconnect, kDeadline, kMaxTime, kDrain, kSlow };

struct Expected {
  FinishReason reason;    // when it is Finished
  absl::StatusCode code;  // kOk: Finished
  bool partial;           // committed under KEEP_PARTIAL
  bool success;           // committed under ON_SUCCESS
};

Expected ExpectedOf(How how) {
  switch (how) {
    case How::kCancel:
      return {FinishReason::kCancelled, absl::StatusCode::kOk, true, false};
    case How::kDisconnect:
      return {FinishReason::kStop, absl::StatusCode::kCancelled, true, false};
    case How::kDeadline:
      return {FinishReason::kStop, absl::StatusCode::kDeadlineExceeded, true, false};
    case How::kMaxTime:
      return {FinishReason::kTime, absl::StatusCode::kOk, true, true};
    case How::kDrain:
      return {FinishReason::kDrained, absl::StatusCode::kOk, true, false};
    case How::kSlow:
      return {FinishReason::kStop, absl::StatusCode::kResourceExhausted, false, false};
  }
  return {};
}

class CommitTable : public ::testing::TestWithParam<std::tuple<Where, How, CommitMode>> {
 protected:
  // One request with this deadline or max_time. False: the machine was so busy that the time may
  // have passed before the request was where its end should come.
  bool HoldsWithin(absl::Duration time);
};

TEST_P(CommitTable, Holds) {
  absl::Duration time = absl::Milliseconds(100);
  while (!HoldsWithin(time)) ASSERT_LT(time *= 2, kPatience);
}

bool CommitTable::HoldsWithin(absl::Duration time) {
  const auto [where, how, mode] = GetParam();
  if (how == How::kSlow && where == Where::kQueue)
    return true;  // nothing is sent yet, nothing to be slow about
  const bool timed = how == How::kDeadline || how == How::kMaxTime;
  Gate gate;
  Harness h;
  h.options.slots = where == Where::kQueue ? 1 : 4;
  h.options.slow_reader_limit = absl::Milliseconds(20);
  h.model.before_step = [&](const StepBatch&) { gate.Wait(); };
  h.Start();
  gate.Open();
  h.Run(h.Request({9, 8, 7}, "c"));  // version 1 to go on from
  gate.Open(0);

  std::shared_ptr<CollectingSink> blocker;
  GenerateRequest blocking = h.Request({1});
  if (where == Where::kQueue) {
    blocking.stopping.max_tokens = kForever;
    blocker = h.Submit(blocking);
    gate.WaitUntilClosed();
  }
  GenerateRequest request = h.Request(where == Where::kPrefill ? Prompt(64) : Prompt(5), "c");
  request.commit = mode;
  request.stopping.max_tokens = kForever;
  const absl::Time end = MonotonicNow() + time;
  if (how == How::kDeadline) request.deadline = absl::Now() + time;
  if (how == How::kMaxTime) request.stopping.max_time = time;
  const auto sink = std::make_shared<CollectingSink>();
  const absl::Status submitted = h.engine->Submit(request, sink);
  EXPECT_TRUE(submitted.ok() || timed) << submitted;
  bool there = submitted.ok();
  if (!there) sink->OnError(submitted);
  if (where == Where::kPrefill) {
    gate.Open(2);  // at most 2 x 16 of 64 tokens
    there = gate.WaitUntilClosedOrEnded(sink.get());
  } else if (where == Where::kDecode) {
    gate.Open(4);
    there = gate.WaitUntilClosedOrEnded(sink.get());
  }
  const bool in_time = there && (!timed || MonotonicNow() < end);
  std::thread drain;
  if (how == How::kCancel) h.engine->Cancel(request.request_id, true);
  if (how == How::kDisconnect) h.engine->Cancel(request.request_id, false);
  if (how == How::kDrain) {
    drain = std::thread([&] { h.engine->Drain(absl::Now() + absl::Milliseconds(1)); });
    while (!h.engine->gauges().draining) std::this_thread::yield();
  }
  if (how == How::kSlow) sink->writable = false;
  if (timed) absl::SleepFor(time);
  if (how == How::kDrain) absl::SleepFor(absl::Milliseconds(2));
  gate.Open();
  sink->Wait();
  if (blocker != nullptr) h.engine->Cancel(blocking.request_id, true);
  if (drain.joinable()) drain.join();
  if (how == How::kDrain) h.engine->Undrain();
  if (blocker != nullptr) blocker->Wait();
  if (timed && !in_time) return false;
  EXPECT_TRUE(in_time);

  const Expected expected = ExpectedOf(how);
  EXPECT_EQ(sink->error.code(), expected.code) << sink->error;
  if (expected.code == absl::StatusCode::kOk) {
    EXPECT_EQ(sink->finished->reason, expected.reason);
  }
  const bool commit = (mode == CommitMode::kKeepPartial && expected.partial) ||
                      (mode == CommitMode::kOnSuccess && expected.success);
  const ConversationInfo info = *store(h).Get({"", "c"});
  EXPECT_FALSE(info.busy);
  EXPECT_EQ(info.last_request_id, request.request_id);
  EXPECT_EQ(info.head, commit ? 2 : 1);
  if (commit && info.head == 2) {
    const VersionInfo version = (*store(h).History({"", "c"}))[1];
    EXPECT_EQ(version.input, request.input);
    EXPECT_EQ(version.output, sink->tokens());
    EXPECT_EQ(version.output.empty(), where != Where::kDecode);
  }
  h.ExpectExact("c");
  EXPECT_EQ(h.engine->gauges().slots_used, 0);
  return true;
}

INSTANTIATE_TEST_SUITE_P(
    All, CommitTable,
    ::testing::Combine(::testing::Values(Where::kQueue, Where::kPrefill, Where::kDecode),
                       ::testing::Values(How::kCancel, How::kDisconnect, How::kDeadline,
                                         How::kMaxTime, How::kDrain, How::kSlow),
                       ::testing::Values(CommitMode::kOnSuccess, CommitMode::kKeepPartial,
                                         CommitMode::kNever)));

TEST_F(EndsTest, NeverCommitsNothing) {
  gate_.Open();
  Start();
  GenerateRequest request = h_.Request({1, 2}, "c");
  request.commit = CommitMode::kNever;
  const auto sink = h_.Run(request);
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  EXPECT_FALSE(sink->finished->committed);
  EXPECT_FALSE(store(h_).Get({"", "c"}).ok());  // created for this request alone
}

TEST_F(EndsTest, BusyConversationIsRefusedAndOthersAreNot) {
  Start();
  const GenerateRequest request = Long("c");
  const auto sink = h_.Submit(request);
  const absl::Status busy = h_.Refused(h_.Request({5}, "c"));
  EXPECT_EQ(busy.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(base::Reason(busy), "CONVERSATION_BUSY");
  EXPECT_EQ(store(h_).Delete({"", "c"}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store(h_).Rewind({"", "c"}, 0).status().code(), absl::StatusCode::kAborted);
  gate_.Open();
  h_.Run(h_.Request({5}, "d"));
  EXPECT_TRUE(h_.engine->Cancel(request.request_id, true));
  sink->Wait();
  EXPECT_EQ(h_.Run(h_.Request({5}, "c"))->finished->version, 1);
}

TEST_F(EndsTest, RequestIdsAreUniqueWhileTheyRun) {
  Start();
  const GenerateRequest request = Long();
  const auto sink = h_.Submit(request);
  const absl::Status again = h_.Refused(request);
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(base::Reason(again), "REQUEST_ID_IN_USE");
  gate_.Open();
  h_.engine->Cancel(request.request_id, true);
  sink->Wait();
  EXPECT_FALSE(h_.engine->Cancel(request.request_id, true));
  GenerateRequest reused = h_.Request({1});
  reused.request_id = request.request_id;
  EXPECT_TRUE(h_.Run(reused)->finished.has_value());
}

TEST_F(EndsTest, FullQueueIsRefusedAtOnce) {
  h_.options.slots = 1;
  h_.options.max_queued = 3;
  h_.options.max_queued_tokens = 100;
  Start();
  const auto running = h_.Submit(Long());
  gate_.WaitUntilClosed();
  std::vector<std::shared_ptr<CollectingSink>> waiting;
  for (int i = 0; i < 3; ++i) waiting.push_back(h_.Submit(h_.Request({1, 2})));
  EXPECT_EQ(h_.engine->gauges().waiting, 3);
  EXPECT_EQ(h_.engine->gauges().waiting_tokens, 6);
  EXPECT_EQ(h_.engine->gauges().running, 1);
  const absl::Status full = h_.Refused(h_.Request({1}, "c"));
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(base::Reason(full), "QUEUE_FULL");
  EXPECT_FALSE(store(h_).Get({"", "c"}).ok());  // refused before the conversation was touched
  EXPECT_GE(h_.engine->RetryDelay(), absl::Milliseconds(100));
  gate_.Open(1);
  gate_.WaitUntilClosed();  // one more turn: the positions are told
  h_.engine->Cancel("r1", true);
  gate_.Open();
  for (const auto& sink : waiting) sink->Wait();
  EXPECT_EQ(waiting[0]->log[0], "queued 0");
  EXPECT_EQ(waiting[2]->log[0], "queued 2");
  EXPECT_EQ(h_.engine->gauges().waiting, 0);
  const absl::Status tokens = h_.Refused(h_.Request(Prompt(101)));
  EXPECT_EQ(base::Reason(tokens), "QUEUE_TOKENS_FULL");
}

TEST_F(EndsTest, WaitingRequestsHearHeartbeats) {
  h_.options.slots = 1;
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(2)); };
  h_.Start();
  const GenerateRequest blocking = Long();
  const auto running = h_.Submit(blocking);
  running->WaitForTokens(1);
  const auto waiting = h_.Submit(h_.Request({1}));
  waiting->WaitForEvents("queued 0", 3);
  h_.engine->Cancel(blocking.request_id, true);
  waiting->Wait();
}

TEST_F(EndsTest, DrainLetsThemFinishAndRefusesNew) {
  Start();
  GenerateRequest request = h_.Request({1, 2}, "c");
  const auto sink = h_.Submit(request);
  std::thread drain([&] { h_.engine->Drain(absl::InfiniteFuture()); });
  while (!h_.engine->gauges().draining) std::this_thread::yield();
  const absl::Status refused = h_.Refused(h_.Request({1}));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(base::Reason(refused), "DRAINING");
  gate_.Open();
  drain.join();
  EXPECT_TRUE(sink->ended());  // Drain returns after the last event was delivered
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  h_.engine->Undrain();
  EXPECT_TRUE(h_.Run(h_.Request({1}))->finished.has_value());
}

TEST_F(EndsTest, DestructionTellsEveryone) {
  h_.options.slots = 1;
  Start();
  const auto running = h_.Submit(Long());
  gate_.WaitUntilClosed();
  const auto waiting = h_.Submit(Long("c"));
  std::thread destroy([&] { h_.engine.reset(); });
  absl::SleepFor(absl::Milliseconds(20));
  gate_.Open();
  destroy.join();
  EXPECT_TRUE(running->ended());
  EXPECT_TRUE(waiting->ended());
  EXPECT_EQ(running->error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting->error.code(), absl::StatusCode::kUnavailable);
}

TEST_F(EndsTest, SlowReaderPausesAndGoesOnExactly) {
  gate_.Open();
  Start();
  GenerateRequest request = h_.Request({1, 2, 3}, "c");
  request.stopping.max_tokens = 400;
  auto sink = std::make_shared<CollectingSink>();
  sink->writable = false;
  ASSERT_TRUE(h_.engine->Submit(request, sink).ok());
  sink->WaitForStart();
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(sink->count(), 0u);
  sink->writable = true;
  sink->Wait();
  EXPECT_EQ(sink->tokens(), h_.OneShot({1, 2, 3}, 400));
  h_.ExpectExact("c");
}

TEST_F(EndsTest, PausedRowsGiveTheirSlotsToOthers) {
  h_.options.slots = 2;
  h_.options.slow_reader_limit = absl::InfiniteDuration();
  gate_.Open();
  Start();
  GenerateRequest request = h_.Request({1, 2, 3});
  request.stopping.max_tokens = 3000;
  const std::vector<int32_t> expected = h_.OneShot({1, 2, 3}, 3000);
  std::vector<std::shared_ptr<CollectingSink>> paused;
  for (int i = 0; i < 5; ++i) {
    gate_.Open(0);
    request.request_id = absl::StrCat("paused", i);
    paused.push_back(h_.Submit(request));
    gate_.Open(10);  // one may be left of the request before
    paused.back()->WaitForTokens(5);
    gate_.WaitUntilClosed();  // it has not come to its end before it is paused
    paused.back()->writable = false;
  }
  gate_.Open();
  const auto last = h_.Run(h_.Request({7, 7}));
  EXPECT_EQ(last->tokens(), h_.OneShot({7, 7}, 4));
  for (const auto& sink : paused) EXPECT_FALSE(sink->ended());
  for (const auto& sink : paused) sink->writable = true;
  for (const auto& sink : paused) {
    sink->Wait();
    EXPECT_EQ(sink->tokens(), expected);
  }
}

// The engine thread is held up so long that it sees both at once: a limit that has passed, and a
// reader that is not slow any more.
TEST_F(EndsTest, AReaderThatHasCaughtUpIsNotEnded) {
  h_.options.slow_reader_limit = absl::Seconds(2);
  Start();
  GenerateRequest request = h_.Request({1, 2, 3});
  request.stopping.max_tokens = 3000;
  const auto slow = h_.Submit(request);
  gate_.Open(10);
  slow->WaitForTokens(5);
  gate_.WaitUntilClosed();
  slow->writable = false;
  const GenerateRequest other = Long();
  const auto running = h_.Submit(other);
  gate_.Open(5);  // one of them may be of both
  gate_.WaitUntilClosed();
  absl::SleepFor(h_.options.slow_reader_limit);
  slow->writable = true;
  gate_.Open();
  slow->Wait();
  ASSERT_TRUE(slow->finished.has_value()) << slow->error;
  EXPECT_EQ(slow->finished->reason, FinishReason::kLength);
  EXPECT_TRUE(h_.engine->Cancel(other.request_id, true));
  running->Wait();
}

TEST_F(EndsTest, CancelledWhileParkedKeepsItsState) {
  h_.options.slots = 1;
  gate_.Open();
  Start();
  GenerateRequest request = Long("c");
  request.commit = CommitMode::kKeepPartial;
  const auto sink = h_.Submit(request);
  sink->WaitForTokens(5);
  sink->writable = false;
  h_.Run(h_.Request({7, 7}));  // takes the slot
  h_.engine->Cancel(request.request_id, true);
  sink->Wait();
  EXPECT_EQ(sink->finished->reason, FinishReason::kCancelled);
  EXPECT_EQ((*store(h_).History({"", "c"}))[0].output, sink->tokens());
  h_.ExpectExact("c");
}

TEST_F(EndsTest, StalledStepShowsInHealth) {
  h_.options.stall_limit = absl::Milliseconds(30);
  Start();
  EXPECT_TRUE(h_.engine->healthy());
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_TRUE(h_.engine->healthy());  // idle is healthy
  const auto sink = h_.Submit(h_.Request({1, 2}));
  gate_.WaitUntilClosed();
  absl::SleepFor(absl::Milliseconds(50));
  EXPECT_FALSE(h_.engine->healthy());
  EXPECT_GT(h_.engine->gauges().since_heartbeat, absl::Milliseconds(30));
  gate_.Open();
  sink->Wait();
  const absl::Time patience = absl::Now() + kPatience;
  while (!h_.engine->healthy()) ASSERT_LT(absl::Now(), patience);
}

class Observer final : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override {
    std::lock_guard<std::mutex> lock(mu);
    steps.push_back(report);
    intervals += static_cast<int64_t>(report.inter_token.size());
  }
  void OnRequestDone(const RequestReport& report) override {
    std::lock_guard<std::mutex> lock(mu);
    requests.push_back(report);
  }
  std::mutex mu;
  std::vector<StepReport> steps;
  int64_t intervals = 0;
  std::vector<RequestReport> requests;
};

TEST_F(EndsTest, ObserverSeesStepsAndRequests) {
  Observer observer;
  h_.observer = &observer;
  gate_.Open();
  Start();
  h_.Run(h_.Request(Prompt(40), "c"));
  // Its deadline passes while it stands before a step.
  gate_.Open(0);
  const absl::Duration soon = absl::Seconds(1);
  GenerateRequest request = Long();
  request.deadline = absl::Now() + soon;
  const auto sink = h_.Submit(request);
  gate_.Open(5);
  gate_.WaitUntilClosedOrEnded(sink.get());
  absl::SleepFor(soon);
  gate_.Open();
  sink->Wait();
  h_.engine.reset();
  int64_t prefill = 0;
  for (const StepReport& step : observer.steps) prefill += step.prefill_tokens;
  EXPECT_EQ(prefill, 40 + 3);
  ASSERT_EQ(observer.requests.size(), 2u);
  const RequestReport& first = observer.requests[0];
  EXPECT_EQ(first.code, "OK");
  EXPECT_EQ(first.finish_reason, "length");
  EXPECT_EQ(first.usage.prompt_tokens, 40);
  EXPECT_EQ(first.usage.completion_tokens, 4);
  const int64_t second = observer.requests[1].usage.completion_tokens;
  EXPECT_EQ(observer.intervals, 3 + std::max<int64_t>(second - 1, 0));
  EXPECT_EQ(first.restored_from, "none");
  EXPECT_GE(first.total, first.timings.prefill + first.timings.decode);
  EXPECT_GE(first.timings.time_to_first_token, first.timings.prefill);
  EXPECT_EQ(observer.requests[1].code, "DEADLINE_EXCEEDED");
  EXPECT_EQ(observer.requests[1].finish_reason, "error");
}

}  // namespace
}  // namespace skein::engine
