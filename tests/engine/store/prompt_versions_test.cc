// Conversations that begin with a prompt state: what they share, and who pays.

#include <gmock/gmock.h>

#include "tests/engine/store/store_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;

constexpr int64_t kSnapshot = kFloats * 4 + 64;

struct PromptVersionsTest : StoreHarness {
  static std::shared_ptr<const PromptState> Prompt(std::string name = "greeting") {
    auto prompt = std::make_shared<PromptState>();
    prompt->name = std::move(name);
    prompt->model = kTag;
    prompt->tokens = {5, 6, 7};
    prompt->snapshot = State(2);
    return prompt;
  }
  absl::StatusOr<ConversationInfo> Create(const std::string& id,
                                          std::shared_ptr<const PromptState> prompt,
                                          const std::string& tenant = "") {
    return store->Create({tenant, id}, {.quotas = quotas, .prompt = std::move(prompt)});
  }
};

TEST_F(PromptVersionsTest, CreateMakesTheFirstVersion) {
  Make();
  const auto prompt = Prompt();
  const auto info = Create("c", prompt);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->head, 1);
  EXPECT_EQ(info->tokens, 3);
  EXPECT_EQ(info->model_fingerprint, kTag.fingerprint);
  const auto history = store->History({"", "c"});
  ASSERT_EQ(history->size(), 1u);
  EXPECT_THAT(history->at(0).input, ElementsAre(5, 6, 7));
  EXPECT_EQ(history->at(0).prompt_state, "greeting");
  EXPECT_EQ(history->at(0).time, options.wall_now());
  const auto lease = store->Acquire(Want("c"));
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(lease->snapshot, prompt->snapshot);
  EXPECT_THAT(lease->pending, ElementsAre(7));
  EXPECT_EQ(lease->base_version, 1);
}

TEST_F(PromptVersionsTest, StateAndTokensAreKeptAndPaidForOnce) {
  quotas.bytes = 4096;
  Make();
  const auto prompt = Prompt();
  ASSERT_TRUE(Create("first", prompt, "a").ok());
  const ConversationStoreGauges one = store->gauges();
  EXPECT_EQ(one.snapshot_bytes, kSnapshot);
  ASSERT_TRUE(Create("second", prompt, "b").ok());
  EXPECT_EQ(store->gauges().snapshot_bytes, kSnapshot);
  ASSERT_TRUE(Create("other", Prompt("other"), "b").ok());
  EXPECT_EQ(store->gauges().snapshot_bytes, 2 * kSnapshot);
  ASSERT_TRUE(store->Delete({"b", "other"}).ok());
  ASSERT_TRUE(store->Delete({"a", "first"}).ok());
  EXPECT_EQ(store->gauges().snapshot_bytes, kSnapshot);
  EXPECT_EQ(store->gauges().token_bytes, one.token_bytes);
  EXPECT_THAT(store->History({"b", "second"})->at(0).input, ElementsAre(5, 6, 7));
  ASSERT_TRUE(store->Delete({"b", "second"}).ok());
  EXPECT_EQ(store->gauges().snapshot_bytes, 0);
  EXPECT_EQ(store->gauges().token_bytes, 0);
}

TEST_F(PromptVersionsTest, ALaterConversationBringsBackWhatWasEvicted) {
  options.budget_bytes = kSnapshot;
  Make();
  const auto prompt = Prompt();
  ASSERT_TRUE(Create("c", prompt).ok());
  ASSERT_TRUE(Turn("other").ok());
  EXPECT_FALSE(store->History({"", "c"})->at(0).has_state);
  const auto rebuilt = store->Acquire(Want("c"));
  EXPECT_THAT(rebuilt->pending, ElementsAre(5, 6, 7));
  EXPECT_EQ(rebuilt->miss, Miss::kEvicted);
  ASSERT_TRUE(Create("d", prompt).ok());
  EXPECT_TRUE(store->History({"", "d"})->at(0).has_state);
  EXPECT_EQ(store->gauges().snapshot_bytes, kSnapshot);
  store->Release(*rebuilt, "request", "CANCELLED");
  ASSERT_TRUE(store->Delete({"", "c"}).ok());
  ASSERT_TRUE(store->Delete({"", "d"}).ok());
  ASSERT_TRUE(store->Delete({"", "other"}).ok());
  EXPECT_EQ(store->gauges().token_bytes, 0);
}

TEST_F(PromptVersionsTest, CommitAddsItBeforeTheTurn) {
  Make();
  const auto prompt = Prompt();
  LeaseRequest wanted = Want("c");
  wanted.prompt = prompt;
  wanted.want_all_tokens = true;
  const auto lease = store->Acquire(wanted);
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(lease->base_version, 0);
  EXPECT_EQ(lease->tokens, 3);
  EXPECT_THAT(lease->all_tokens, ElementsAre(5, 6, 7));
  EXPECT_THAT(lease->last_tokens, ElementsAre(5, 6, 7));
  EXPECT_EQ(store->Get({"", "c"})->head, 0);
  EXPECT_EQ(*store->Commit(*lease, {1}, {2}, State(4), "stop", "request"), 2);
  EXPECT_EQ(store->Get({"", "c"})->tokens, 5);
  const auto copies = store->Fork({"", "c"}, 1, 1, {"copy"});
  ASSERT_TRUE(copies.ok());
  EXPECT_EQ(store->History({"", "copy"})->at(0).prompt_state, "greeting");
  const absl::Status refused = store->Acquire(wanted).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(refused), "CONVERSATION_NOT_EMPTY");
}

TEST_F(PromptVersionsTest, TokensCountForTheServersLimit) {
  options.token_budget_bytes = 600;  // for an empty conversation
  Make();
  EXPECT_EQ(Reason(Create("c", Prompt()).status()), "CONVERSATION_MEMORY");
  EXPECT_TRUE(Create("c", nullptr).ok());
}

}  // namespace
}  // namespace skein::engine
