// A state that is still in its device slot when its conversation goes on.

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

struct WarmSlotsTest : ::testing::Test {
  std::string From(const std::string& id, std::optional<int64_t> base = {}) {
    GenerateRequest request = h.Request({8, 9}, id);
    request.base_version = base;
    const auto sink = h.Run(request);
    EXPECT_TRUE(sink->finished.has_value()) << sink->error;
    EXPECT_TRUE(sink->finished->committed);
    return sink->started->restored_from;
  }
  Harness h;
};

TEST_F(WarmSlotsTest, AConversationGoesOnInItsSlot) {
  h.Start();
  EXPECT_EQ(From("c"), "none");
  for (int turn = 0; turn < 5; ++turn) EXPECT_EQ(From("c"), "device");
  h.ExpectExact("c");
  EXPECT_EQ(From("c"), "host");  // what ran in between changed the slot
  EXPECT_EQ(From("c"), "device");
  h.ExpectExact("c");
  EXPECT_EQ(h.engine->gauges().slots_used, 0);
}

TEST_F(WarmSlotsTest, TheOldestGivesItsSlotUpFirst) {
  h.options.slots = 2;
  h.Start();
  From("a");
  From("b");
  EXPECT_EQ(From("a"), "device");
  From("c");  // in the slot of b
  EXPECT_EQ(From("a"), "device");
  EXPECT_EQ(From("c"), "device");
  EXPECT_EQ(From("b"), "host");
  EXPECT_EQ(From("c"), "device");
  for (const char* id : {"a", "b", "c"}) h.ExpectExact(id);
}

TEST_F(WarmSlotsTest, OneSlotServesItsOwnStateAgain) {
  h.options.slots = 1;
  h.Start();
  From("a");
  EXPECT_EQ(From("a"), "device");
  From("b");
  EXPECT_EQ(From("b"), "device");
  EXPECT_EQ(From("a"), "host");
  h.ExpectExact("a");
  h.ExpectExact("b");
}

TEST_F(WarmSlotsTest, OnlyTheVersionThatTheSlotHolds) {
  h.Start();
  From("c");
  From("c");
  EXPECT_EQ(From("c", 1), "host");
  EXPECT_EQ(From("c", 3), "device");
  EXPECT_EQ(From("c", 2), "device");  // version 3 began in another slot
  EXPECT_EQ(From("c", 0), "none");
  ASSERT_TRUE(h.store->Fork({"", "c"}, 4, 1, {"copy"}).ok());
  EXPECT_NE(From("copy"), "tokens");  // copies share the state, and so the slot
  for (int64_t version = 1; version <= 6; ++version) h.ExpectExact("c", version);
  h.ExpectExact("copy");
}

TEST_F(WarmSlotsTest, TheHostCopyIsTheOneThatCounts) {
  h.store_options.budget_bytes = 0;
  h.Start();
  From("c");
  EXPECT_EQ(From("c"), "tokens");
  h.ExpectExact("c");
}

TEST_F(WarmSlotsTest, WhatRunsKeepsNoCopyOfWhatItStartedFrom) {
  const int64_t one = h.model.config().state_floats() * static_cast<int64_t>(sizeof(float)) + 64;
  h.store_options.budget_bytes = one;
  h.Start();
  for (const int32_t sequences : {1, 3}) {
    From("c");
    const std::weak_ptr<const StateSnapshot> kept =
        h.store->Peek({.key = {"", "c"}, .model = h.engine->tag()})->snapshot;
    ASSERT_FALSE(kept.expired());
    GenerateRequest request = h.Request({8, 9}, "c");
    request.stopping.max_tokens = 1000000;
    request.num_sequences = sequences;
    std::vector<std::shared_ptr<ResponseSink>> sinks;
    for (int32_t i = 0; i < sequences; ++i) sinks.push_back(std::make_shared<CollectingSink>());
    ASSERT_TRUE(h.engine->Submit(request, sinks).ok());
    auto& first = static_cast<CollectingSink&>(*sinks[0]);
    first.WaitForTokens(1);
    From("d");  // its state takes the place of the other
    EXPECT_TRUE(kept.expired());
    EXPECT_LE(h.store->gauges().snapshot_bytes, one);
    h.engine->Cancel(request.request_id, /*by_client=*/true);
    for (const auto& sink : sinks) static_cast<CollectingSink&>(*sink).Wait();
    EXPECT_EQ(first.started->restored_from, "device");
    h.ExpectExact("c");
  }
}

TEST_F(WarmSlotsTest, NothingIsFoundOfATurnThatWasNotCommitted) {
  h.Start();
  From("c");
  GenerateRequest request = h.Request({8, 9}, "c");
  request.commit = CommitMode::kNever;
  EXPECT_EQ(h.Run(request)->started->restored_from, "device");
  EXPECT_EQ(h.Run(request)->started->restored_from, "host");
  h.ExpectExact("c");
}

}  // namespace
}  // namespace skein::engine
