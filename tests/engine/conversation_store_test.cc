#include "engine/store/conversation_store.h"

#include <gmock/gmock.h>

#include "engine/base/status.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kModel = 3;
constexpr ModelTag kTag{kModel, 1};
constexpr int64_t kFloats = 100;  // 464 bytes a snapshot

ConversationKey Key(std::string id) { return {"", std::move(id)}; }

std::shared_ptr<const StateSnapshot> State(int64_t consumed) {
  auto snapshot = std::make_shared<StateSnapshot>();
  snapshot->model_fingerprint = kModel;
  snapshot->consumed = consumed;
  snapshot->state.assign(kFloats, static_cast<float>(consumed));
  return snapshot;
}

struct StoreTest : ::testing::Test {
  void Make(ConversationStoreOptions options = {}) {
    store = std::make_unique<ConversationStore>(options);
  }
  absl::StatusOr<Lease> Acquire(const std::string& id, bool create,
                                std::optional<int64_t> base = {},
                                std::optional<int64_t> expected = {}) {
    return store->Acquire({.key = Key(id),
                           .model = kTag,
                           .create_if_missing = create,
                           .base_version = base,
                           .expected_version = expected});
  }
  absl::StatusOr<Lease> Peek(const std::string& id, std::optional<int64_t> base = {},
                             Pending pending = Pending::kAny) {
    return store->Peek({.key = Key(id), .model = kTag, .base_version = base, .pending = pending});
  }
  // A turn on top of the head (or `base`): one input token, `outputs` output tokens, the last one
  // not consumed.
  int64_t Turn(const std::string& id, int32_t token, int32_t outputs = 2,
               std::optional<int64_t> base = {}) {
    auto lease = Acquire(id, true, base);
    EXPECT_TRUE(lease.ok()) << lease.status();
    const int64_t tokens = lease->tokens + 1 + outputs;
    const auto version = store->Commit(*lease, {token}, std::vector<int32_t>(outputs, token + 1),
                                       State(tokens - 1), "stop", "request");
    EXPECT_TRUE(version.ok()) << version.status();
    return *version;
  }
  // Versions that have one.
  std::vector<int64_t> WithState(const std::string& id) {
    const auto history = store->History(Key(id));
    EXPECT_TRUE(history.ok());
    std::vector<int64_t> versions;
    for (const VersionInfo& v : *history) {
      if (v.has_state) versions.push_back(v.id);
    }
    return versions;
  }
  std::unique_ptr<ConversationStore> store;
};

TEST_F(StoreTest, TurnsMakeATree) {
  Make();
  EXPECT_EQ(Turn("c", 10), 1);
  EXPECT_EQ(Turn("c", 20), 2);
  EXPECT_EQ(Turn("c", 30, 2, 1), 3);
  EXPECT_EQ(Turn("c", 40, 2, 0), 4);
  const auto history = *store->History(Key("c"));
  ASSERT_EQ(history.size(), 4u);
  EXPECT_EQ(history[0].parent, 0);
  EXPECT_EQ(history[1].parent, 1);
  EXPECT_EQ(history[2].parent, 1);
  EXPECT_EQ(history[3].parent, 0);
  EXPECT_EQ(history[2].tokens, 6);
  EXPECT_THAT(history[1].input, ElementsAre(20));
  EXPECT_THAT(history[1].output, ElementsAre(21, 21));
  const ConversationInfo info = *store->Get(Key("c"));
  EXPECT_EQ(info.head, 4);
  EXPECT_EQ(info.tokens, 3);
  EXPECT_EQ(info.last_request_id, "request");
  EXPECT_EQ(info.last_end, "stop");
  EXPECT_EQ(info.state_bytes, 4 * State(0)->bytes());
}

TEST_F(StoreTest, LeaseHoldsSnapshotAndPendingTokens) {
  Make();
  Turn("c", 10);
  Turn("c", 20);
  const Lease lease = *Acquire("c", false);
  EXPECT_EQ(lease.base_version, 2);
  EXPECT_EQ(lease.tokens, 6);
  EXPECT_EQ(lease.snapshot->consumed, 5);
  EXPECT_THAT(lease.pending, ElementsAre(21));
  EXPECT_EQ(lease.miss, Miss::kNone);
  EXPECT_THAT(lease.last_tokens, ElementsAre(10, 11, 11, 20, 21, 21));
  store->Release(lease, "r", "CANCELLED");
  EXPECT_EQ(store->Get(Key("c"))->last_end, "CANCELLED");
  const Lease empty = *Acquire("c", false, 0, std::nullopt);
  EXPECT_EQ(empty.snapshot, nullptr);
  EXPECT_THAT(empty.last_tokens, IsEmpty());
  EXPECT_THAT(empty.pending, IsEmpty());
}

TEST_F(StoreTest, LastTokensAreAFew) {
  Make();
  Turn("c", 10, 30);
  Turn("c", 20, 1);
  EXPECT_EQ(Peek("c")->last_tokens.size(), 16u);
  EXPECT_EQ(Peek("c")->last_tokens.back(), 21);
}

TEST_F(StoreTest, TenantsDoNotMeet) {
  Make();
  Turn("c", 10);
  const ConversationKey other{"other", "c"};
  EXPECT_EQ(base::Reason(store->Get(other).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->History(other).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->Fork(other, {}, 1, {}).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->Rewind(other, 0).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->Peek({.key = other}).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->Acquire({.key = other}).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(store->Delete(other)), "CONVERSATION_NOT_FOUND");
  EXPECT_THAT(store->List({.tenant = "other"}), IsEmpty());
  EXPECT_EQ(store->Create(other)->head, 0);
  EXPECT_EQ(store->Get(Key("c"))->head, 1);
  EXPECT_EQ(store->List({.tenant = "other"}).size(), 1u);
  EXPECT_EQ(store->Fork(Key("c"), {}, 1, {"d"})->at(0).id, "d");
  EXPECT_EQ(store->List({.tenant = "other"}).size(), 1u);
}

TEST_F(StoreTest, AnotherModelsStatesAreNotUsed) {
  Make();
  Turn("c", 10);
  const Lease lease = *store->Peek({.key = Key("c"), .model = {kModel + 1, 1}});
  EXPECT_EQ(lease.snapshot, nullptr);
  EXPECT_EQ(lease.miss, Miss::kModel);
  EXPECT_THAT(lease.pending, ElementsAre(10, 11, 11));
}

TEST_F(StoreTest, AtLeastOnePendingTakesAnOlderState) {
  Make();
  Turn("c", 10);
  const Lease lease = *Acquire("c", false);
  ASSERT_TRUE(store->Commit(lease, {20}, {21}, State(5), "stop", "r")
                  .ok());  // everything consumed: it hit a stop
  EXPECT_THAT(Peek("c")->pending, IsEmpty());
  const Lease again = *Peek("c", std::nullopt, Pending::kAtLeastOne);
  EXPECT_EQ(again.snapshot->consumed, 2);
  EXPECT_THAT(again.pending, ElementsAre(11, 20, 21));
  EXPECT_EQ(again.miss, Miss::kEmptyInput);
}

TEST_F(StoreTest, Refusals) {
  ConversationStoreOptions options;
  options.max_conversations = 2;
  Make(options);
  Turn("c", 10);
  const auto acquire = [&](const std::string& id, bool create, std::optional<int64_t> base,
                           std::optional<int64_t> expected) {
    return Acquire(id, create, base, expected).status();
  };
  EXPECT_EQ(base::Reason(acquire("x", false, {}, {})), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(base::Reason(acquire("c", false, 7, {})), "VERSION_NOT_FOUND");
  EXPECT_EQ(base::Reason(acquire("x", true, 7, {})), "VERSION_NOT_FOUND");
  EXPECT_EQ(base::Reason(acquire("c", false, {}, 2)), "VERSION_MISMATCH");
  EXPECT_EQ(base::Reason(acquire("x", true, {}, 2)), "VERSION_MISMATCH");
  EXPECT_FALSE(store->Get(Key("x")).ok());
  const Lease lease = *Acquire("c", false, {}, 1);
  EXPECT_EQ(base::Reason(acquire("c", false, {}, {})), "CONVERSATION_BUSY");
  EXPECT_EQ(base::Reason(store->Delete(Key("c"))), "CONVERSATION_BUSY");
  EXPECT_TRUE(Peek("c").ok());
  store->Release(lease, "r", "error");
  EXPECT_EQ(base::Reason(store->Create(Key("c")).status()), "CONVERSATION_EXISTS");
  const std::string made = store->Create(Key(""))->id;
  EXPECT_EQ(made.size(), 32u);
  EXPECT_EQ(base::Reason(acquire("third", true, {}, {})), "CONVERSATION_LIMIT");
  EXPECT_EQ(base::Reason(store->Create(Key("")).status()), "CONVERSATION_LIMIT");
  EXPECT_EQ(base::Reason(store->Fork(Key("c"), {}, 1, {}).status()), "CONVERSATION_LIMIT");
  EXPECT_TRUE(store->Delete(Key(made)).ok());
  EXPECT_EQ(base::Reason(store->Delete(Key(made))), "CONVERSATION_NOT_FOUND");
}

TEST_F(StoreTest, ReleasingACreatedConversationRemovesIt) {
  Make();
  const Lease lease = *Acquire("c", true);
  EXPECT_TRUE(lease.created);
  EXPECT_TRUE(store->Get(Key("c"))->busy);
  store->Release(lease, "r", "error");
  EXPECT_FALSE(store->Get(Key("c")).ok());
  EXPECT_EQ(store->gauges().token_bytes, 0);
}

TEST_F(StoreTest, LeastRecentlyUsedSnapshotsGoFirst) {
  ConversationStoreOptions options;
  options.budget_bytes = 3 * State(0)->bytes();
  Make(options);
  Turn("a", 10);
  Turn("b", 10);
  Turn("c", 10);
  ASSERT_TRUE(Peek("a").ok());  // now b is the oldest
  Turn("d", 10);
  EXPECT_TRUE((*store->History(Key("a")))[0].has_state);
  EXPECT_FALSE((*store->History(Key("b")))[0].has_state);
  EXPECT_TRUE((*store->History(Key("c")))[0].has_state);
  EXPECT_EQ(store->gauges().evictions, 1);
  EXPECT_LE(store->gauges().snapshot_bytes, options.budget_bytes);
  const Lease lease = *Peek("b");
  EXPECT_EQ(lease.snapshot, nullptr);
  EXPECT_EQ(lease.miss, Miss::kEvicted);
  EXPECT_THAT(lease.pending, ElementsAre(10, 11, 11));
  EXPECT_EQ(store->gauges().misses, 1);
}

TEST_F(StoreTest, WhyAStateIsNotThereStaysKnown) {
  ConversationStoreOptions options;
  options.budget_bytes = 2 * State(0)->bytes();
  Make(options);
  Turn("c", 10);
  Turn("d", 10);
  Turn("d", 20);  // c's has left
  EXPECT_EQ(Peek("c", 1)->miss, Miss::kEvicted);
  Turn("c", 30);  // within its history it would have been kept
  EXPECT_EQ(Peek("c", 1)->miss, Miss::kEvicted);
  EXPECT_EQ(store->Fork(Key("c"), 1, 1, {"copy"})->size(), 1u);
  EXPECT_EQ(Peek("copy")->miss, Miss::kEvicted);
  // Committed without a state: nothing of the turn was computed.
  const Lease lease = *Acquire("e", true);
  ASSERT_TRUE(store->Commit(lease, {1}, {}, nullptr, "cancelled", "r").ok());
  EXPECT_EQ(Peek("e")->miss, Miss::kNotMade);
}

TEST_F(StoreTest, RegeneratingKeepsWhatItStartsFrom) {
  for (const int32_t history : {2, 4}) {
    ConversationStoreOptions options;
    options.history = history;
    Make(options);
    for (int i = 0; i < 3; ++i) Turn("c", 10 * i);
    for (int i = 0; i < 5; ++i) {
      EXPECT_FALSE(Peek("c", 2)->miss != Miss::kNone)
          << "history " << history << ", regeneration " << i;
      Turn("c", 20, 2, 2);
      EXPECT_LE(store->gauges().snapshot_bytes, history * State(0)->bytes());
    }
    // The head, what it goes on from, and where there is room the newest of the other answers:
    // those that have none are made again of one turn.
    EXPECT_EQ(WithState("c"),
              history == 2 ? std::vector<int64_t>({2, 8}) : std::vector<int64_t>({1, 2, 7, 8}));
    EXPECT_THAT(Peek("c", 5)->pending, ElementsAre(11, 20, 21, 21));
    // An edit of the turn before.
    EXPECT_EQ(Peek("c", 1)->miss != Miss::kNone, history == 2);
  }
}

TEST_F(StoreTest, ABranchThatIsLeftKeepsItsNewestStates) {
  ConversationStoreOptions options;
  options.history = 3;
  Make(options);
  for (int i = 0; i < 5; ++i) Turn("c", 10 * i);
  Turn("c", 50, 2, 1);  // its base has none left
  EXPECT_THAT(WithState("c"), ElementsAre(4, 5, 6));
  Turn("c", 60);
  EXPECT_THAT(WithState("c"), ElementsAre(5, 6, 7));
}

TEST_F(StoreTest, NewestVersionsKeepTheirStates) {
  ConversationStoreOptions options;
  options.history = 2;
  Make(options);
  for (int i = 0; i < 5; ++i) Turn("c", 10 * i);
  const auto history = *store->History(Key("c"));
  for (int i = 0; i < 5; ++i) EXPECT_EQ(history[i].has_state, i >= 3) << i;
  EXPECT_EQ(store->gauges().snapshot_bytes, 2 * State(0)->bytes());
  // An old version is rebuilt from the tokens of its ancestors.
  EXPECT_THAT(Peek("c", 2)->pending, ElementsAre(0, 1, 1, 10, 11, 11));
  EXPECT_EQ(Peek("c", 2)->miss, Miss::kHistory);
  // A version after a kept one is rebuilt from that.
  Turn("c", 70, 2, 3);
  EXPECT_EQ(Peek("c", 6)->snapshot->consumed, 11);
}

TEST_F(StoreTest, ForksShareStatesAndTokens) {
  Make();
  Turn("c", 10);
  Turn("c", 20);
  const ConversationStoreGauges before = store->gauges();
  const auto copies = *store->Fork(Key("c"), std::nullopt, 3, {"x", "y", "z"});
  EXPECT_EQ(copies[1].id, "y");
  EXPECT_EQ(copies[1].head, 2);
  EXPECT_EQ(store->gauges().snapshot_bytes, before.snapshot_bytes);
  EXPECT_LT(store->gauges().token_bytes - before.token_bytes, 3 * 1000);
  EXPECT_EQ(Peek("y", 1)->snapshot, Peek("c", 1)->snapshot);
  EXPECT_EQ(Turn("y", 30), 3);
  EXPECT_EQ(store->Get(Key("c"))->head, 2);
  ASSERT_TRUE(store->Delete(Key("c")).ok());
  EXPECT_EQ(Peek("x")->snapshot->consumed, 5);
  for (const char* id : {"x", "y", "z"}) ASSERT_TRUE(store->Delete(Key(id)).ok());
  EXPECT_EQ(store->gauges().snapshot_bytes, 0);
  EXPECT_EQ(store->gauges().token_bytes, 0);
}

TEST_F(StoreTest, ForkIsAllOrNothing) {
  Make();
  Turn("c", 10);
  Turn("taken", 10);
  EXPECT_EQ(store->Fork(Key("c"), {}, 2, {"new", "taken"}).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store->Fork(Key("c"), {}, 2, {"same", "same"}).status().code(),
            absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(store->Fork(Key("c"), {}, 2, {"one"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->Fork(Key("c"), {}, 0, {}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->Fork(Key("c"), 9, 1, {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Fork(Key("no"), {}, 1, {}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->gauges().conversations, 2);
  EXPECT_EQ(store->Fork(Key("c"), 0, 1, {"empty"})->at(0).tokens, 0);
}

TEST_F(StoreTest, RewindMovesTheHead) {
  Make();
  Turn("c", 10);
  Turn("c", 20);
  EXPECT_EQ(store->Rewind(Key("c"), 1)->head, 1);
  EXPECT_EQ(store->Rewind(Key("c"), 9).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Turn("c", 30), 3);  // ids are never reused
  EXPECT_EQ((*store->History(Key("c")))[2].parent, 1);
  EXPECT_EQ(store->Rewind(Key("c"), 0)->tokens, 0);
  EXPECT_EQ(store->Rewind(Key("c"), 2)->tokens, 6);
}

TEST_F(StoreTest, ListIsOrderedAndPaged) {
  Make();
  for (const char* id : {"b2", "a", "b1", "c", "b3"}) Turn(id, 1);
  const auto names = [&](std::string prefix, std::string after, int32_t limit) {
    std::vector<std::string> ids;
    for (const ConversationInfo& info :
         store->List({.prefix = prefix, .after = after, .limit = limit}))
      ids.push_back(info.id);
    return ids;
  };
  EXPECT_THAT(names("", "", 10), ElementsAre("a", "b1", "b2", "b3", "c"));
  EXPECT_THAT(names("b", "", 2), ElementsAre("b1", "b2"));
  EXPECT_THAT(names("b", "b2", 2), ElementsAre("b3"));
  EXPECT_THAT(names("b", "a", 9), ElementsAre("b1", "b2", "b3"));
  EXPECT_THAT(names("b", "c", 9), IsEmpty());
  EXPECT_THAT(names("", "b3", 9), ElementsAre("c"));
}

TEST_F(StoreTest, TokensAreBounded) {
  ConversationStoreOptions options;
  options.token_budget_bytes = 8000;
  Make(options);
  Turn("c", 10, 1000);
  auto lease = Acquire("c", false);
  ASSERT_TRUE(lease.ok());
  const auto refused =
      store->Commit(*lease, std::vector<int32_t>(1000, 1), {}, nullptr, "stop", "r");
  EXPECT_EQ(base::Reason(refused.status()), "CONVERSATION_MEMORY");
  EXPECT_TRUE(store->Get(Key("c"))->busy);
  store->Release(*lease, "r", "RESOURCE_EXHAUSTED");
  EXPECT_EQ(store->Get(Key("c"))->head, 1);
  // Empty turns are not free either.
  int commits = 0;
  while (true) {
    lease = Acquire("c", false);
    if (!lease.ok() || !store->Commit(*lease, {}, {}, nullptr, "stop", "r").ok()) break;
    ASSERT_LT(++commits, 100);
  }
  EXPECT_LE(store->gauges().token_bytes, 8000);
}

TEST_F(StoreTest, LoweredLimitsRefuseWhatIsNewAndNotWhatIsThere) {
  ConversationStoreOptions options;
  Make(options);
  for (const char* id : {"a", "b", "c"}) Turn(id, 10);
  const auto running = Acquire("b", false);
  options.max_conversations = 2;
  store->SetLimits(options);
  EXPECT_EQ(Turn("a", 20), 2);
  EXPECT_TRUE(store->Commit(*running, {1}, {2}, nullptr, "stop", "r").ok());
  EXPECT_EQ(store->Rewind(Key("a"), 1)->head, 1);
  const auto created = store->Create(Key("d"));
  EXPECT_EQ(base::Reason(created.status()), "CONVERSATION_LIMIT");
  EXPECT_THAT(std::string(created.status().message()), ::testing::HasSubstr("conversations.max"));
  EXPECT_EQ(base::Reason(store->Fork(Key("a"), {}, 1, {}).status()), "CONVERSATION_LIMIT");
  // The same of a tenant's quota.
  LeaseRequest wanted{.key = Key("a"), .model = kTag};
  wanted.quotas.conversations = 1;
  const auto lease = store->Acquire(wanted);
  ASSERT_TRUE(lease.ok()) << lease.status();
  store->Release(*lease, "r", "stop");
  for (const char* id : {"b", "c"}) ASSERT_TRUE(store->Delete(Key(id)).ok());
  EXPECT_TRUE(store->Create(Key("d")).ok());
}

TEST_F(StoreTest, LoweredMemoryLeavesWhatIsThereToReadRewindAndDelete) {
  ConversationStoreOptions options;
  Make(options);
  Turn("long", 10, 1000);
  Turn("long", 20, 1000);
  Turn("short", 30);
  options.token_budget_bytes = 4000;
  store->SetLimits(options);
  const auto refused = Acquire("long", false).status();
  EXPECT_EQ(base::Reason(refused), "CONVERSATION_MEMORY");
  EXPECT_THAT(std::string(refused.message()), ::testing::HasSubstr("conversations.token_budget"));
  EXPECT_EQ(store->History(Key("long"))->size(), 2);
  EXPECT_EQ(Peek("long")->tokens, 2002);
  EXPECT_EQ(store->Rewind(Key("long"), 1)->tokens, 1001);
  ASSERT_TRUE(store->Delete(Key("long")).ok());
  EXPECT_EQ(Turn("short", 40), 2);
}

// The branches that it leaves out cost it nothing.
TEST_F(StoreTest, AForkTakesRoomForItsOwnBranch) {
  ConversationStoreOptions options;
  Make(options);
  Turn("c", 10);
  for (int i = 0; i < 50; ++i) Turn("c", 20, 2, 1);
  options.token_budget_bytes = store->gauges().token_bytes + 1000;
  store->SetLimits(options);
  EXPECT_TRUE(store->Fork(Key("c"), 2, 1, {}).ok());
  EXPECT_LE(store->gauges().token_bytes, options.token_budget_bytes);
}

}  // namespace
}  // namespace skein::engine
