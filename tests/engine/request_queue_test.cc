#include "engine/request_queue.h"

#include <gmock/gmock.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status.h"
#include "engine/clock.h"

namespace skein::engine {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }

QueuePlace Place(int64_t tokens, absl::string_view tenant = "") {
  QueuePlace place;
  place.tokens = tokens;
  place.tenant = std::string(tenant);
  return place;
}

// Reserves without keeping the control; "" when it was accepted, else the reason.
std::string Reserve(RequestQueue* queue, absl::string_view id, QueuePlace place,
                    Quotas quotas = {}) {
  return base::Reason(queue->Reserve(id, quotas, kStart, &place).status());
}

TEST(RequestQueue, RetryDelayFollowsTheDrainRate) {
  RequestQueue queue(10, 1000);
  EXPECT_EQ(queue.RetryDelay(At(0)), absl::Seconds(1));  // nothing measured yet
  for (int i = 0; i < 10; ++i) ASSERT_EQ(Reserve(&queue, std::string(1, 'a' + i), Place(5)), "");
  for (int i = 0; i < 6; ++i) queue.Left(Place(5), At(2 * i));  // one in two seconds
  EXPECT_EQ(queue.counts().waiting, 4);
  EXPECT_EQ(queue.counts().waiting_tokens, 20);
  EXPECT_EQ(queue.RetryDelay(At(10)), absl::Seconds(10));  // behind four others
  EXPECT_EQ(queue.RetryDelay(At(13)), absl::Seconds(15));  // it has become slower than that
  EXPECT_EQ(queue.RetryDelay(At(1000)), absl::Seconds(60));
  for (int i = 6; i < 10; ++i) queue.Left(Place(5), At(10) + (i - 5) * absl::Milliseconds(1));
  // The time that nobody waited does not count.
  ASSERT_EQ(Reserve(&queue, "later", Place(5)), "");
  queue.Left(Place(5), At(18000));
  EXPECT_LT(queue.RetryDelay(At(18000)), absl::Seconds(2));
}

TEST(RequestQueue, RetryDelayGrowsWithTheQueue) {
  RequestQueue queue(1000, 1000);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(Reserve(&queue, absl::StrCat("first", i), Place(0)), "");
  for (int i = 0; i < 2; ++i) queue.Left(Place(0), At(0.05 * i));
  absl::Duration before = queue.RetryDelay(At(0.05));
  EXPECT_EQ(before, absl::Milliseconds(100));  // the least
  for (int i = 0; i < 900; ++i) {
    ASSERT_EQ(Reserve(&queue, absl::StrCat(i), Place(0)), "");
    const absl::Duration delay = queue.RetryDelay(At(0.05));
    ASSERT_GE(delay, before);
    before = delay;
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(before), 0.05 * 902, 1e-6);
}

TEST(RequestQueue, RefusalsLeaveNothingBehind) {
  RequestQueue queue(2, 10);
  EXPECT_TRUE(queue.CheckOpen("t", {}).ok());
  ASSERT_EQ(Reserve(&queue, "a", Place(4)), "");
  EXPECT_EQ(Reserve(&queue, "a", Place(4)), "REQUEST_ID_IN_USE");
  EXPECT_EQ(Reserve(&queue, "b", Place(7)), "QUEUE_TOKENS_FULL");
  ASSERT_EQ(Reserve(&queue, "b", Place(6)), "");
  EXPECT_EQ(Reserve(&queue, "c", Place(0)), "QUEUE_FULL");
  EXPECT_EQ(Reserve(&queue, "c", Place(11)), "QUEUE_TOKENS_FULL");  // nor ever
  EXPECT_EQ(base::Reason(queue.CheckOpen("t", {})), "QUEUE_FULL");
  queue.Abandon("a", Place(4));
  EXPECT_TRUE(queue.CheckOpen("t", {}).ok());
  EXPECT_EQ(Reserve(&queue, "a", Place(4)), "");
  EXPECT_EQ(queue.counts().waiting, 2);
  EXPECT_EQ(queue.counts().waiting_tokens, 10);
  queue.Stop();
  EXPECT_EQ(Reserve(&queue, "d", Place(0)), "DRAINING");
  EXPECT_EQ(base::Reason(queue.CheckOpen("t", {})), "DRAINING");
}

TEST(RequestQueue, WhatIsLargerThanTheQueueIsNotToldToWait) {
  RequestQueue queue(2, 10);
  ASSERT_EQ(Reserve(&queue, "a", Place(5)), "");
  const auto waiting_helps = [&](int64_t tokens) {
    QueuePlace place = Place(tokens);
    const absl::Status status = queue.Reserve("b", {}, kStart, &place).status();
    EXPECT_EQ(base::Reason(status), "QUEUE_TOKENS_FULL");
    return !status.GetPayload(base::kNoRetryPayload).has_value();
  };
  EXPECT_TRUE(waiting_helps(6));
  EXPECT_TRUE(waiting_helps(10));
  EXPECT_FALSE(waiting_helps(11));
}

TEST(RequestQueue, ATenantHasItsQuota) {
  RequestQueue queue(100, 1000);
  const Quotas quotas = {.requests = 2, .queued_tokens = 50};
  ASSERT_EQ(Reserve(&queue, "a", Place(30, "t"), quotas), "");
  EXPECT_EQ(Reserve(&queue, "b", Place(30, "t"), quotas), "TENANT_QUOTA");  // tokens
  ASSERT_EQ(Reserve(&queue, "c", Place(20, "t"), quotas), "");
  EXPECT_EQ(Reserve(&queue, "d", Place(0, "t"), quotas), "TENANT_QUOTA");  // requests
  EXPECT_EQ(Reserve(&queue, "e", Place(50, "u"), quotas), "");             // another's
  EXPECT_EQ(Reserve(&queue, "f", Place(90, "t")), "");                     // no quota
  queue.Abandon("f", Place(90, "t"));
  queue.Left(Place(30, "t"), At(0));
  EXPECT_EQ(Reserve(&queue, "g", Place(0, "t"), quotas), "TENANT_QUOTA");  // "a" runs
  // Also where nothing is known of the request but whose it is.
  EXPECT_EQ(base::Reason(queue.CheckOpen("t", quotas)), "TENANT_QUOTA");
  EXPECT_TRUE(queue.CheckOpen("u", quotas).ok());
  EXPECT_TRUE(queue.CheckOpen("t", {.queued_tokens = 1}).ok());
  queue.Ended("a");
  EXPECT_TRUE(queue.CheckOpen("t", quotas).ok());
  EXPECT_EQ(Reserve(&queue, "h", Place(30, "t"), quotas), "");
}

// ---- deadlines refused early

// Steps that cost 10 ms, 1 ms a decoding row and 1 ms a prompt token.
StepCost Costs() {
  StepCost cost;
  for (int i = 0; i < 200; ++i) {
    const int decodes = i % 7, prefill = i % 10 == 0 ? 1000 : (i * 13) % 40;
    cost.Learn(decodes, prefill, absl::Milliseconds(10 + decodes + prefill));
  }
  return cost;
}

struct DeadlineCase {
  const char* name;
  bool measured;
  int64_t prompt, least_output;
  double deadline;
  bool must_end;
  std::vector<std::pair<double, int64_t>> others;  // deadline, prompt
  double interval;                                 // between two that left; 0: none has
  const char* reason;
};

// Half of the costs counts: 1,000 prompt tokens take half a second, 100 steps of one row 0.55 s.
const DeadlineCase kDeadlines[] = {
    {"nothing measured", false, 100000, 1, 0.01, true, {}, 0, ""},
    {"its prompt fits", true, 1000, 1, 0.52, true, {}, 0, ""},
    {"its prompt does not", true, 1000, 1, 0.48, true, {}, 0, "DEADLINE_UNREACHABLE"},
    {"its max_time ends it before", true, 1000, 1, 0.48, false, {}, 0, ""},
    {"tokens that it must make", true, 10, 101, 0.5, true, {}, 0, "DEADLINE_UNREACHABLE"},
    {"tokens that it may make", true, 10, 1, 0.5, true, {}, 0, ""},
    {"prompts due before", true, 100, 1, 2, true, {{1, 4000}}, 0, "DEADLINE_UNREACHABLE"},
    {"prompts due before, few", true, 100, 1, 2, true, {{1, 3000}}, 0, ""},
    {"prompts due after", true, 100, 1, 2, true, {{3, 40000}}, 0, ""},
    {"the queue drains slowly", true, 1, 1, 2, true, {{1, 1}, {1.5, 1}}, 3, "DEADLINE_UNREACHABLE"},
    {"the queue drains", true, 1, 1, 2, true, {{1, 1}, {1.5, 1}}, 1.5, ""},
    {"it drains slowly, for others", true, 1, 1, 2, true, {{3, 1}, {4, 1}}, 30, ""},
};

TEST(RequestQueue, DeadlineTable) {
  for (const DeadlineCase& c : kDeadlines) {
    RequestQueue queue(100, 1000000);
    if (c.measured) queue.Publish(Costs());
    if (c.interval > 0) {
      for (int i = 0; i < 9; ++i) ASSERT_EQ(Reserve(&queue, absl::StrCat("left", i), Place(1)), "");
      for (int i = 0; i < 8; ++i)
        queue.Left(Place(1), kStart - absl::Seconds((7 - i) * c.interval));
    }
    for (size_t i = 0; i < c.others.size(); ++i) {
      QueuePlace other = Place(c.others[i].second);
      other.deadline = At(c.others[i].first);
      other.must_end = false;
      ASSERT_EQ(Reserve(&queue, absl::StrCat("other", i), other), "") << c.name;
    }
    QueuePlace place = Place(c.prompt);
    place.deadline = At(c.deadline);
    place.must_end = c.must_end;
    place.least_output = c.least_output;
    const int32_t waiting = queue.counts().waiting;
    EXPECT_EQ(Reserve(&queue, "it", place), c.reason) << c.name;
    EXPECT_EQ(queue.counts().waiting, waiting + (*c.reason == 0)) << c.name;
  }
}

TEST(RequestQueue, TheFirstCancelCounts) {
  RequestQueue queue(2, 10);
  QueuePlace place = Place(1);
  const auto control = *queue.Reserve("a", {}, kStart, &place);
  EXPECT_FALSE(queue.Cancel("b", RequestControl::kByClient));
  EXPECT_TRUE(queue.Cancel("a", RequestControl::kByTransport));
  EXPECT_TRUE(queue.Cancel("a", RequestControl::kByClient));
  EXPECT_EQ(control->cancel, RequestControl::kByTransport);
  std::vector<std::unique_ptr<Sequence>> arrivals;
  std::vector<std::shared_ptr<RequestControl>> cancelled;
  queue.Take(absl::InfinitePast(), &arrivals, &cancelled);
  EXPECT_THAT(cancelled, ::testing::ElementsAre(control));  // once
}

TEST(RequestQueue, DrainWaitsUntilAllIsSettled) {
  RequestQueue queue(2, 10);
  ASSERT_EQ(Reserve(&queue, "a", Place(1)), "");
  ASSERT_EQ(Reserve(&queue, "b", Place(1)), "");
  std::atomic<bool> drained{false};
  std::thread waiter([&] {
    queue.WaitUntilNoneRuns();
    drained = true;
  });
  queue.Abandon("a", Place(1));
  queue.Left(Place(1), At(0));
  queue.Ended("b");
  absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(drained);  // its last event is not on the way yet
  queue.Settled(1);
  waiter.join();
  EXPECT_TRUE(drained);
}

// A call in parts that was accepted goes on while the server drains, and the drain waits for it.
TEST(RequestQueue, DrainLetsAcceptedCallsGoOn) {
  RequestQueue queue(2, 10);
  queue.Hold();
  queue.BeginDrain(absl::InfiniteFuture());
  EXPECT_EQ(Reserve(&queue, "a", Place(1)), "DRAINING");
  QueuePlace part = Place(1);
  part.accepted = true;
  EXPECT_EQ(Reserve(&queue, "b", part), "");
  std::atomic<bool> drained{false};
  std::thread waiter([&] {
    queue.WaitUntilNoneRuns();
    drained = true;
  });
  queue.Abandon("b", Place(1));
  absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(drained);  // nothing runs, but more may come
  queue.LetGo();
  waiter.join();
  EXPECT_TRUE(drained);
  queue.Stop();
  EXPECT_EQ(Reserve(&queue, "c", part), "DRAINING");
}

TEST(RequestQueue, DrainDoesNotWaitForMoreBeyondItsDeadline) {
  RequestQueue queue(2, 10);
  queue.Hold();
  queue.BeginDrain(absl::InfiniteFuture());
  std::thread waiter([&] { queue.WaitUntilNoneRuns(); });
  queue.BeginDrain(MonotonicNow() + absl::Milliseconds(10));
  waiter.join();
}

}  // namespace
}  // namespace skein::engine
