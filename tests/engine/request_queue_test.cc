#include "engine/request_queue.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "engine/base/status.h"

namespace skein::engine {
namespace {

TEST(RequestQueue, RetryDelayFollowsTheDrainRate) {
  RequestQueue queue(10, 1000);
  EXPECT_EQ(queue.RetryDelay(), absl::Seconds(1));  // nothing measured yet
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(queue.Reserve(std::string(1, 'a' + i), 5).ok());
  const absl::Time t0 = absl::UnixEpoch();
  for (int i = 0; i < 6; ++i) queue.Left(5, t0 + i * absl::Seconds(2));  // one in two seconds
  EXPECT_EQ(queue.counts().waiting, 4);
  EXPECT_EQ(queue.counts().waiting_tokens, 20);
  EXPECT_NEAR(absl::ToDoubleSeconds(queue.RetryDelay()), 10, 0.1);  // behind four others
  for (int i = 6; i < 10; ++i)
    queue.Left(5, t0 + absl::Seconds(10) + (i - 5) * absl::Milliseconds(1));
  // The time that nobody waited does not count.
  ASSERT_TRUE(queue.Reserve("later", 5).ok());
  queue.Left(5, t0 + absl::Hours(5));
  EXPECT_LT(queue.RetryDelay(), absl::Seconds(2));
}

TEST(RequestQueue, RefusalsLeaveNothingBehind) {
  RequestQueue queue(2, 10);
  ASSERT_TRUE(queue.Reserve("a", 4).ok());
  EXPECT_EQ(base::Reason(queue.Reserve("a", 4).status()), "REQUEST_ID_IN_USE");
  EXPECT_EQ(base::Reason(queue.Reserve("b", 7).status()), "QUEUE_TOKENS_FULL");
  ASSERT_TRUE(queue.Reserve("b", 6).ok());
  EXPECT_EQ(base::Reason(queue.Reserve("c", 0).status()), "QUEUE_FULL");
  queue.Abandon("a", 4);
  EXPECT_TRUE(queue.Reserve("a", 4).ok());
  EXPECT_EQ(queue.counts().waiting, 2);
  EXPECT_EQ(queue.counts().waiting_tokens, 10);
  queue.Stop();
  EXPECT_EQ(base::Reason(queue.Reserve("d", 0).status()), "DRAINING");
}

TEST(RequestQueue, TheFirstCancelCounts) {
  RequestQueue queue(2, 10);
  const auto control = *queue.Reserve("a", 1);
  EXPECT_FALSE(queue.Cancel("b", RequestControl::kByClient));
  EXPECT_TRUE(queue.Cancel("a", RequestControl::kByTransport));
  EXPECT_TRUE(queue.Cancel("a", RequestControl::kByClient));
  EXPECT_EQ(control->cancel, RequestControl::kByTransport);
}

TEST(RequestQueue, DrainWaitsUntilAllIsSettled) {
  RequestQueue queue(2, 10);
  ASSERT_TRUE(queue.Reserve("a", 1).ok());
  ASSERT_TRUE(queue.Reserve("b", 1).ok());
  std::atomic<bool> drained{false};
  std::thread waiter([&] {
    queue.WaitUntilNoneRuns();
    drained = true;
  });
  queue.Abandon("a", 1);
  queue.Left(1, absl::UnixEpoch());
  queue.Ended("b");
  absl::SleepFor(absl::Milliseconds(10));
  EXPECT_FALSE(drained);  // its last event is not on the way yet
  queue.Settled(1);
  waiter.join();
  EXPECT_TRUE(drained);
}

}  // namespace
}  // namespace skein::engine
