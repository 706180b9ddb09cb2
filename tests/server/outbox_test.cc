// The state machine of one stream: order, one write at a time, one finish, coalescing, bounds;
// alone and under threads.

#include "server/outbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"

namespace skein::server {
namespace {

using Response = skein::v1::GenerateResponse;
using Box = Outbox<Response>;
using Action = Box::Action;

const absl::Time kNow = absl::FromUnixSeconds(1000);

Response Text(const std::string& text) {
  Response r;
  r.mutable_delta()->set_text(text);
  return r;
}

Response Queued(int64_t position) {
  Response r;
  r.mutable_queued()->set_position(position);
  return r;
}

Response Finished() {
  Response r;
  r.mutable_finished();
  return r;
}

TEST(Outbox, WritesAtOnceWhenIdle) {
  Box box(10);
  const Action action = box.Push(Text("a"), 1, kNow);
  EXPECT_EQ(action.kind, Action::kWrite);
  EXPECT_EQ(action.event.delta().text(), "a");
}

TEST(Outbox, CoalescesWhatPilesUpBehindAWrite) {
  Box box(10);
  box.Push(Text("a"), 1, kNow);
  EXPECT_EQ(box.Push(Text("b"), 1, kNow).kind, Action::kNothing);
  Response with_token = Text("c");
  with_token.mutable_delta()->add_tokens()->set_id(7);
  EXPECT_EQ(box.Push(with_token, 1, kNow).kind, Action::kNothing);
  const Action action = box.WriteDone(true);
  EXPECT_EQ(action.kind, Action::kWrite);
  EXPECT_EQ(action.event.delta().text(), "bc");
  ASSERT_EQ(action.event.delta().tokens_size(), 1);
  EXPECT_EQ(action.event.delta().tokens(0).id(), 7);
  EXPECT_EQ(box.WriteDone(true).kind, Action::kNothing);
}

TEST(Outbox, KeepsOnlyTheNewestHeartbeat) {
  Box box(10);
  box.Push(Queued(3), 0, kNow);
  box.Push(Queued(2), 0, kNow);
  box.Push(Queued(1), 0, kNow);
  EXPECT_EQ(box.WriteDone(true).event.queued().position(), 1);
  EXPECT_EQ(box.WriteDone(true).kind, Action::kNothing);
}

TEST(Outbox, DoesNotCoalesceDifferentSequences) {
  Response a = Text("a"), b = Text("b");
  b.mutable_delta()->set_index(1);
  EXPECT_FALSE(Coalesce(&a, &b));
  Response finished = Finished();
  EXPECT_FALSE(Coalesce(&a, &finished));
  EXPECT_EQ(a.delta().text(), "a");
}

TEST(Outbox, LastEventLeavesTogetherWithTheStatus) {
  Box box(10);
  box.Push(Text("a"), 1, kNow);
  box.Push(Finished(), 0, kNow);
  EXPECT_EQ(box.End(absl::OkStatus()).kind, Action::kNothing);
  const Action action = box.WriteDone(true);
  EXPECT_EQ(action.kind, Action::kWriteAndFinish);
  EXPECT_TRUE(action.event.has_finished());
  EXPECT_TRUE(action.status.ok());
}

TEST(Outbox, ErrorBeforeAnyEventIsAPlainFinish) {
  Box box(10);
  const Action action = box.End(absl::AbortedError("busy"));
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsAborted(action.status));
  EXPECT_EQ(box.Push(Text("late"), 1, kNow).kind, Action::kNothing);
  EXPECT_EQ(box.End(absl::OkStatus()).kind, Action::kNothing);
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kNothing);
}

TEST(Outbox, DropWaitsForTheWriteInFlight) {
  Box box(10);
  box.Push(Text("a"), 1, kNow);
  box.Push(Text("b"), 1, kNow);
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kNothing);
  const Action action = box.WriteDone(false);
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsCancelled(action.status));
}

TEST(Outbox, DropWhileIdleFinishesAtOnce) {
  Box box(10);
  box.Push(Text("a"), 1, kNow);
  box.WriteDone(true);
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kFinish);
}

TEST(Outbox, FailedWriteEndsTheStream) {
  Box box(10);
  box.Push(Text("a"), 1, kNow);
  box.Push(Text("b"), 1, kNow);
  const Action action = box.WriteDone(false);
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsCancelled(action.status));
}

TEST(Outbox, SaysWhenTheReaderIsSlow) {
  Box box(3);
  box.Push(Text("a"), 1, kNow);  // in flight: does not count
  EXPECT_TRUE(box.writable());
  box.Push(Text("bb"), 2, kNow + absl::Seconds(1));
  EXPECT_TRUE(box.writable());
  box.Push(Text("c"), 1, kNow + absl::Seconds(2));
  EXPECT_FALSE(box.writable());
  EXPECT_EQ(box.Age(kNow + absl::Seconds(5)), absl::Seconds(5));
  box.WriteDone(true);
  EXPECT_TRUE(box.writable());
  EXPECT_EQ(box.Age(kNow + absl::Seconds(5)), absl::Seconds(4));
  box.WriteDone(true);
  EXPECT_EQ(box.Age(kNow + absl::Seconds(5)), absl::ZeroDuration());
}

// A transport with a thread of its own: writes take a moment, then WriteDone is called from there.
class Transport {
 public:
  explicit Transport(Box* box) : box_(box), thread_([this] { Run(); }) {}
  ~Transport() {
    stop_ = true;
    thread_.join();
  }

  void Apply(const Action& action) {
    if (action.kind == Action::kNothing) return;
    if (action.kind != Action::kFinish) {
      EXPECT_FALSE(writing_.exchange(true)) << "two writes in flight";
      received_ += action.event.delta().text();
    } else {
      EXPECT_FALSE(writing_.load()) << "finished during a write";
    }
    if (action.kind != Action::kWrite) {
      EXPECT_EQ(finishes_.fetch_add(1), 0);
    }
    if (action.kind == Action::kWrite) done_pending_ = true;
  }

  int finishes() const { return finishes_; }
  const std::string& received() const { return received_; }

 private:
  void Run() {
    while (!stop_) {
      if (done_pending_.exchange(false)) {
        writing_ = false;
        Apply(box_->WriteDone(true));
      } else {
        std::this_thread::yield();
      }
    }
  }

  Box* const box_;
  std::atomic<bool> writing_{false}, done_pending_{false}, stop_{false};
  std::atomic<int> finishes_{0};
  std::string received_;  // ordered by writing_
  std::thread thread_;
};

TEST(OutboxThreads, NothingIsLostOrReordered) {
  for (int round = 0; round < 50; ++round) {
    Box box(1000);
    std::string sent;
    Transport transport(&box);
    for (int i = 0; i < 200; ++i) {
      const std::string text = absl::StrCat(i, ",");
      sent += text;
      transport.Apply(box.Push(Text(text), 1, kNow));
    }
    transport.Apply(box.End(absl::OkStatus()));
    while (transport.finishes() == 0) std::this_thread::yield();
    EXPECT_EQ(transport.received(), sent);
  }
}

TEST(OutboxThreads, ACancelAnywhereFinishesExactlyOnce) {
  for (int round = 0; round < 300; ++round) {
    Box box(1000);
    Transport transport(&box);
    std::thread canceller([&] {
      for (int i = 0; i < round; ++i) std::this_thread::yield();
      transport.Apply(box.Drop(absl::CancelledError()));
    });
    for (int i = 0; i < 50; ++i) transport.Apply(box.Push(Text("x"), 1, kNow));
    transport.Apply(box.End(absl::OkStatus()));
    canceller.join();
    while (transport.finishes() == 0) std::this_thread::yield();
    EXPECT_EQ(transport.finishes(), 1);
  }
}

}  // namespace
}  // namespace skein::server
