// The state machine of one stream: order, one write at a time, one finish; alone and under threads.

#include "server/outbox.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "skein/v1/generation.pb.h"

namespace skein::server {
namespace {

using Response = skein::v1::ScoreResponse;
using Box = Outbox<Response>;
using Action = Box::Action;

Response Nth(int index) {
  Response r;
  r.set_index(index);
  return r;
}

TEST(Outbox, WritesAtOnceWhenIdle) {
  Box box;
  const Action action = box.Push(Nth(3));
  EXPECT_EQ(action.kind, Action::kWrite);
  EXPECT_EQ(action.event.index(), 3);
}

TEST(Outbox, WhatPilesUpBehindAWriteLeavesInOrder) {
  Box box;
  box.Push(Nth(0));
  EXPECT_EQ(box.Push(Nth(1)).kind, Action::kNothing);
  EXPECT_EQ(box.Push(Nth(2)).kind, Action::kNothing);
  EXPECT_EQ(box.WriteDone(true).event.index(), 1);
  const Action action = box.WriteDone(true);
  EXPECT_EQ(action.kind, Action::kWrite);
  EXPECT_EQ(action.event.index(), 2);
  EXPECT_EQ(box.WriteDone(true).kind, Action::kNothing);
}

TEST(Outbox, LastEventLeavesTogetherWithTheStatus) {
  Box box;
  box.Push(Nth(0));
  box.Push(Nth(1));
  EXPECT_EQ(box.End(absl::OkStatus()).kind, Action::kNothing);
  const Action action = box.WriteDone(true);
  EXPECT_EQ(action.kind, Action::kWriteAndFinish);
  EXPECT_EQ(action.event.index(), 1);
  EXPECT_TRUE(action.status.ok());
  EXPECT_EQ(box.WriteDone(true).kind, Action::kNothing);
}

TEST(Outbox, ErrorBeforeAnyEventIsAPlainFinish) {
  Box box;
  const Action action = box.End(absl::AbortedError("busy"));
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsAborted(action.status));
  EXPECT_EQ(box.Push(Nth(0)).kind, Action::kNothing);
  EXPECT_EQ(box.End(absl::OkStatus()).kind, Action::kNothing);
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kNothing);
}

TEST(Outbox, DropWaitsForTheWriteInFlight) {
  Box box;
  box.Push(Nth(0));
  box.Push(Nth(1));
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kNothing);
  const Action action = box.WriteDone(false);
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsCancelled(action.status));
}

TEST(Outbox, DropWhileIdleFinishesAtOnce) {
  Box box;
  box.Push(Nth(0));
  box.WriteDone(true);
  EXPECT_EQ(box.Drop(absl::CancelledError()).kind, Action::kFinish);
}

TEST(Outbox, FailedWriteEndsTheStream) {
  Box box;
  box.Push(Nth(0));
  box.Push(Nth(1));
  const Action action = box.WriteDone(false);
  EXPECT_EQ(action.kind, Action::kFinish);
  EXPECT_TRUE(absl::IsCancelled(action.status));
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
      received_.push_back(action.event.index());
    } else {
      EXPECT_FALSE(writing_.load()) << "finished during a write";
    }
    if (action.kind != Action::kWrite) {
      EXPECT_EQ(finishes_.fetch_add(1), 0);
    }
    if (action.kind == Action::kWrite) done_pending_ = true;
  }

  int finishes() const { return finishes_; }
  const std::vector<int>& received() const { return received_; }

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
  std::vector<int> received_;  // ordered by writing_
  std::thread thread_;
};

TEST(OutboxThreads, NothingIsLostOrReordered) {
  for (int round = 0; round < 50; ++round) {
    Box box;
    std::vector<int> sent;
    Transport transport(&box);
    for (int i = 0; i < 200; ++i) {
      sent.push_back(i);
      transport.Apply(box.Push(Nth(i)));
    }
    transport.Apply(box.End(absl::OkStatus()));
    while (transport.finishes() == 0) std::this_thread::yield();
    EXPECT_EQ(transport.received(), sent);
  }
}

TEST(OutboxThreads, ACancelAnywhereFinishesExactlyOnce) {
  for (int round = 0; round < 300; ++round) {
    Box box;
    Transport transport(&box);
    std::atomic<int> pushed{0};
    std::thread canceller([&] {
      while (pushed < round % 51) std::this_thread::yield();
      transport.Apply(box.Drop(absl::CancelledError()));
    });
    for (int i = 0; i < 50; ++i) {
      transport.Apply(box.Push(Nth(i)));
      ++pushed;
    }
    transport.Apply(box.End(absl::OkStatus()));
    canceller.join();
    while (transport.finishes() == 0) std::this_thread::yield();
    EXPECT_EQ(transport.finishes(), 1);
  }
}

}  // namespace
}  // namespace skein::server
