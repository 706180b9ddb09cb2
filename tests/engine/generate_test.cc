// Generate and conversations end to end, over the fake model.

#include <gmock/gmock.h>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class GenerateTest : public ::testing::Test {
 protected:
  void SetUp() override { h_.Start(); }
  ConversationStore& store() { return h_.engine->conversations(); }
  Harness h_;
};

TEST_F(GenerateTest, StatelessRunTellsEverything) {
  GenerateRequest request = h_.Request({10, 20, 30});
  request.sampling.seed = 99;
  request.want_logprobs = true;
  request.top_logprobs = 2;
  const auto sink = h_.Run(request);
  ASSERT_TRUE(sink->finished.has_value()) << sink->error;
  EXPECT_EQ(sink->started->seed, 99u);
  EXPECT_EQ(sink->started->restored_from, "none");
  EXPECT_EQ(sink->started->conversation_id, "");
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  EXPECT_FALSE(sink->finished->committed);
  EXPECT_EQ(sink->finished->usage.prompt_tokens, 3);
  EXPECT_EQ(sink->finished->usage.completion_tokens, 4);
  EXPECT_EQ(sink->finished->usage.conversation_tokens, 7);
  ASSERT_EQ(sink->events.size(), 4u);
  for (const TokenEvent& token : sink->events) {
    EXPECT_LT(token.logprob, 0);
    ASSERT_EQ(token.top.size(), 2u);
    EXPECT_EQ(token.top[0].token, token.token);  // greedy
    EXPECT_GE(token.top[0].value, token.top[1].value);
  }
  EXPECT_EQ(store().gauges().conversations, 0);
}

TEST_F(GenerateTest, SameSeedSameTokensOtherSeedOthers) {
  const auto run = [&](uint64_t seed) {
    GenerateRequest request = h_.Request({1, 2, 3});
    request.stopping.max_tokens = 20;
    request.sampling.temperature = 1;
    request.sampling.seed = seed;
    return h_.Run(request)->tokens();
  };
  const auto first = run(5);
  EXPECT_EQ(first, run(5));
  EXPECT_NE(first, run(6));
}

TEST_F(GenerateTest, ContinuesAConversationExactly) {
  const auto first = h_.Run(h_.Request({5, 6, 7}, "c"));
  EXPECT_TRUE(first->started->created);
  EXPECT_EQ(first->started->version, 0);
  EXPECT_EQ(first->finished->version, 1);
  EXPECT_TRUE(first->finished->committed);
  const auto second = h_.Run(h_.Request({8, 9}, "c"));
  EXPECT_FALSE(second->started->created);
  EXPECT_EQ(second->started->version, 1);
  EXPECT_EQ(second->started->restored_from, "device");  // its slot was not needed meanwhile
  EXPECT_EQ(second->started->tokens_reused, 6);         // 3 + 4, less the last sampled one
  EXPECT_EQ(second->finished->usage.conversation_tokens, 13);
  const auto whole = Join(Join({5, 6, 7}, first->tokens()), {8, 9});
  EXPECT_EQ(second->tokens(), h_.OneShot(whole, 4));
  EXPECT_EQ(h_.Tokens("c"), Join(whole, second->tokens()));
  h_.ExpectExact("c");
}

TEST_F(GenerateTest, EachTokenIsFedOnce) {
  h_.Run(h_.Request({5, 6, 7}, "c"));
  EXPECT_EQ(h_.model.tokens_fed, 3 + 3);  // the last sampled token waits
  h_.Run(h_.Request({8}, "c"));
  EXPECT_EQ(h_.model.tokens_fed, 6 + 1 + 1 + 3);
}

TEST_F(GenerateTest, EmptyInputGoesOn) {
  const auto first = h_.Run(h_.Request({5, 6, 7}, "c"));
  const auto second = h_.Run(h_.Request({}, "c"));
  EXPECT_EQ(Join(first->tokens(), second->tokens()), h_.OneShot({5, 6, 7}, 8));
}

TEST_F(GenerateTest, NothingToGoOnFromIsRefused) {
  EXPECT_EQ(h_.Refused(h_.Request({})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(h_.Refused(h_.Request({}, "new")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(store().Get({"", "new"}).ok());
  ASSERT_TRUE(store().Create({"", "empty"}).ok());
  EXPECT_EQ(h_.Refused(h_.Request({}, "empty")).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(store().Get({"", "empty"})->busy);
}

TEST_F(GenerateTest, MaxTokensZeroOnlyTakesTheTextIn) {
  GenerateRequest request = h_.Request({5, 6, 7, 8}, "c");
  request.stopping.max_tokens = 0;
  const auto sink = h_.Run(request);
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  EXPECT_TRUE(sink->finished->committed);
  EXPECT_THAT(sink->events, IsEmpty());
  EXPECT_EQ(h_.model.tokens_fed, 3);  // the last one waits, so that an empty turn can go on from it
  EXPECT_THAT(h_.Tokens("c"), ElementsAre(5, 6, 7, 8));
  h_.ExpectExact("c");
  request = h_.Request({}, "c");
  request.stopping.max_tokens = 0;
  EXPECT_EQ(h_.Run(request)->finished->version, 2);
  h_.ExpectExact("c");
}

TEST_F(GenerateTest, BaseVersionRegeneratesAndBranches) {
  const auto first = h_.Run(h_.Request({5, 6, 7}, "c"));
  const auto second = h_.Run(h_.Request({8, 9}, "c"));
  GenerateRequest again = h_.Request({8, 9}, "c");
  again.base_version = 1;
  const auto third = h_.Run(again);
  EXPECT_EQ(third->tokens(), second->tokens());
  EXPECT_EQ(third->finished->version, 3);
  GenerateRequest other = h_.Request({11}, "c");
  other.base_version = 0;
  const auto fourth = h_.Run(other);
  EXPECT_EQ(fourth->tokens(), h_.OneShot({11}, 4));
  const auto history = store().History({"", "c"});
  ASSERT_EQ(history->size(), 4u);
  EXPECT_EQ((*history)[2].parent, 1);
  EXPECT_EQ((*history)[3].parent, 0);
  for (int64_t version = 1; version <= 4; ++version) h_.ExpectExact("c", version);
  other = h_.Request({11}, "c");
  other.base_version = 9;
  EXPECT_EQ(h_.Refused(other).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(store().Get({"", "c"})->busy);
}

TEST_F(GenerateTest, ExpectedVersionGuardsTheHead) {
  h_.Run(h_.Request({5, 6, 7}, "c"));
  GenerateRequest request = h_.Request({8}, "c");
  request.expected_version = 0;
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kFailedPrecondition);
  request.expected_version = 1;
  EXPECT_EQ(h_.Run(request)->finished->version, 2);
}

TEST_F(GenerateTest, UnknownConversationIsNotCreatedByItself) {
  GenerateRequest request = h_.Request({5}, "typo");
  request.create_if_missing = false;
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store().gauges().conversations, 0);
}

TEST_F(GenerateTest, ForkAndRewind) {
  h_.Run(h_.Request({5, 6, 7}, "c"));
  h_.Run(h_.Request({8, 9}, "c"));
  const auto copies = store().Fork({"", "c"}, 1, 2, {"a", "b"});
  ASSERT_TRUE(copies.ok()) << copies.status();
  const auto a = h_.Run(h_.Request({8, 9}, "a"));
  EXPECT_EQ(a->started->restored_from, "host");
  EXPECT_EQ(h_.Tokens("a"), h_.Tokens("c"));
  h_.Run(h_.Request({12}, "b"));
  h_.ExpectExact("a");
  h_.ExpectExact("b");
  h_.ExpectExact("c");
  ASSERT_TRUE(store().Rewind({"", "c"}, 1).ok());
  h_.ExpectExact("c", 1);
  EXPECT_EQ(h_.Run(h_.Request({13}, "c"))->finished->version, 3);
  h_.ExpectExact("c");
}

TEST_F(GenerateTest, BadRequestsAreRefused) {
  GenerateRequest request = h_.Request({5, 300});
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kInvalidArgument);
  request = h_.Request({-1});
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kInvalidArgument);
  request = h_.Request({5});
  request.sampling.logit_bias = {{999, 1.0f}};
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kInvalidArgument);
  request = h_.Request({5});
  for (int32_t token = 0; token < 257; ++token) request.sampling.banned_tokens.push_back(token);
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kInvalidArgument);
  request = h_.Request({5});
  request.stopping.stop_strings = {""};
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kInvalidArgument);
  request = h_.Request({5});
  request.deadline = absl::Now() - absl::Seconds(1);
  EXPECT_EQ(h_.Refused(request).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(h_.engine->gauges().waiting, 0);
}

TEST_F(GenerateTest, BansAndBiasesHold) {
  GenerateRequest request = h_.Request({5, 6});
  request.stopping.max_tokens = 30;
  request.sampling.temperature = 2;
  for (int32_t token = 0; token < 257; ++token) {
    if (token != 40 && token != 41) request.sampling.banned_tokens.push_back(token);
  }
  for (const int32_t token : h_.Run(request)->tokens()) EXPECT_TRUE(token == 40 || token == 41);
  request = h_.Request({5, 6});
  request.sampling.logit_bias = {{77, 25.0f}, {77, 25.0f}};
  EXPECT_THAT(h_.Run(request)->tokens(), ElementsAre(77, 77, 77, 77));
}

TEST_F(GenerateTest, SeparatorComesBeforeAnOpenTurnOnly) {
  const std::vector<int32_t> separator = h_.tokenizer.Encode("\n\n");
  GenerateRequest request = h_.Request(h_.tokenizer.Encode("User: hi"), "c");
  request.separator = separator;
  request.stopping.max_tokens = 0;
  h_.Run(request);
  EXPECT_EQ(h_.tokenizer.Decode(h_.Tokens("c")), "User: hi");
  request = h_.Request(h_.tokenizer.Encode("User: more\n\n"), "c");
  request.separator = separator;
  request.stopping.max_tokens = 0;
  h_.Run(request);
  EXPECT_EQ(h_.tokenizer.Decode(h_.Tokens("c")), "User: hi\n\nUser: more\n\n");
  EXPECT_EQ((*store().History({"", "c"}))[1].input.size(), 2 + 12);
  request = h_.Request(h_.tokenizer.Encode("User: end"), "c");
  request.separator = separator;
  request.stopping.max_tokens = 0;
  h_.Run(request);
  EXPECT_EQ(h_.tokenizer.Decode(h_.Tokens("c")), "User: hi\n\nUser: more\n\nUser: end");
  h_.ExpectExact("c");
}

TEST_F(GenerateTest, LongPromptsReportProgressAndAreCutAnywhere) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < 500; ++i) prompt.push_back(1 + i % 250);
  const auto sink = h_.Run(h_.Request(prompt, "c"));
  ASSERT_FALSE(sink->progress.empty());
  EXPECT_EQ(sink->progress.back().done, 500);
  EXPECT_EQ(sink->progress.back().total, 500);
  h_.ExpectExact("c");
}

TEST(GenerateTokenMemory, ATurnThatDoesNotFitIsAnErrorAndLeavesNothing) {
  Harness h;
  h.store_options.token_budget_bytes = 4000;
  h.Start();
  h.Run(h.Request({1, 2}, "c"));
  GenerateRequest request = h.Request({3}, "c");
  request.stopping.max_tokens = 1000;
  const auto sink = h.Run(request);
  EXPECT_EQ(sink->error.code(), absl::StatusCode::kResourceExhausted) << sink->error;
  const ConversationInfo info = *h.engine->conversations().Get({"", "c"});
  EXPECT_EQ(info.head, 1);
  EXPECT_FALSE(info.busy);
  EXPECT_EQ(info.last_end, "RESOURCE_EXHAUSTED");
  h.ExpectExact("c");
  EXPECT_EQ(h.Run(h.Request({3}, "c"))->finished->version, 2);
}

TEST(GenerateUnusedIds, AreNeverSampled) {
  Harness h({"", "word", ""});
  h.model.script = [](int64_t) { return 257; };  // the model wants an id that stands for nothing
  h.Start();
  for (const int32_t token : h.Run(h.Request({1}))->tokens()) EXPECT_NE(token, 257);
}

TEST(GenerateNonFinite, FailsThatRowOnly) {
  Harness h;
  h.model.poison = 250;
  h.Start();
  GenerateRequest good = h.Request({5, 6});
  good.stopping.max_tokens = 50;
  good.sampling.banned_tokens = {250};
  const auto neighbour = h.Submit(good);
  const auto bad = h.Run(h.Request({5, 250, 6}, "c"));
  EXPECT_EQ(bad->error.code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(h.engine->conversations().Get({"", "c"}).ok());
  neighbour->Wait();
  EXPECT_EQ(neighbour->tokens().size(), 50u);
}

}  // namespace
}  // namespace skein::engine
