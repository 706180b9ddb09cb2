// How long conversations live, what is remembered of them, whose they are, which model goes on with
// them, and who waits for them.

#include <gmock/gmock.h>

#include "tests/engine/store/store_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr absl::Duration kHour = absl::Hours(1);

// ---- ttl and tombstones

struct ExpiryTest : StoreHarness {};

TEST_F(ExpiryTest, AnIdleConversationGoesWhenItsTtlHasPassed) {
  options.ttl = kHour;
  Make();
  ASSERT_TRUE(Turn("c").ok());
  EXPECT_EQ(store->Get({"", "c"})->ttl, kHour);
  Pass(kHour - absl::Seconds(1));
  EXPECT_TRUE(store->Get({"", "c"}).ok());  // looking does not count as use
  Pass(absl::Seconds(1));
  const absl::Status gone = store->Get({"", "c"}).status();
  EXPECT_EQ(Reason(gone), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(Metadata(gone, "reason"), "EXPIRED");
  EXPECT_EQ(Metadata(gone, "last_seen"), "2001-09-09T01:46:40+00:00");
  EXPECT_EQ(Metadata(gone, "gone"), "2001-09-09T02:46:40+00:00");
  EXPECT_THAT(std::string(gone.message()), HasSubstr("expired (last used 2001-09-09T01:46:40"));
  EXPECT_EQ(store->gauges().expired, 1);
  EXPECT_EQ(store->gauges().conversations, 0);
  EXPECT_EQ(store->gauges().token_bytes, 0);
  EXPECT_EQ(store->gauges().snapshot_bytes, 0);
}

TEST_F(ExpiryTest, EveryWayOfAskingFindsItGone) {
  const std::vector<std::function<absl::Status(ConversationStore&)>> ways = {
      [](ConversationStore& s) {
        return s.Get({"", "c"}).status();
      },
      [](ConversationStore& s) {
        return s.History({"", "c"}).status();
      },
      [](ConversationStore& s) {
        return s.Delete({"", "c"});
      },
      [](ConversationStore& s) {
        return s.Rewind({"", "c"}, 0).status();
      },
      [](ConversationStore& s) {
        return s.Fork({"", "c"}, {}, 1, {}).status();
      },
      [](ConversationStore& s) {
        return s.Peek({.key = {"", "c"}, .model = kTag}).status();
      },
      [](ConversationStore& s) {
        return s.Acquire({.key = {"", "c"}, .model = kTag}).status();
      },
  };
  options.ttl = kHour;
  for (size_t i = 0; i < ways.size(); ++i) {
    Make();
    ASSERT_TRUE(Turn("c").ok());
    Pass(kHour);
    EXPECT_EQ(Metadata(ways[i](*store), "reason"), "EXPIRED") << i;
  }
  Make();
  ASSERT_TRUE(Turn("c").ok());
  Pass(kHour);
  EXPECT_THAT(Ids({}), IsEmpty());
}

TEST_F(ExpiryTest, ExpireTakesThoseThatAreDueAndNoOthers) {
  Make();
  for (int i = 0; i < 600; ++i) {
    LeaseRequest wanted = Want(absl::StrCat("short", i));
    wanted.ttl = kHour;
    ASSERT_TRUE(Turn(wanted).ok());
    wanted = Want(absl::StrCat("long", i));
    wanted.ttl = 2 * kHour;
    ASSERT_TRUE(Turn(wanted).ok());
    ASSERT_TRUE(Turn(absl::StrCat("ever", i)).ok());
  }
  store->Expire();
  EXPECT_EQ(store->gauges().conversations, 1800);
  Pass(kHour);
  store->Expire();
  EXPECT_EQ(store->gauges().conversations, 1200);
  EXPECT_EQ(store->gauges().expired, 600);
  Pass(kHour);
  store->Expire();
  EXPECT_EQ(store->gauges().conversations, 600);
  Pass(1000 * kHour);
  store->Expire();
  EXPECT_EQ(Ids({.prefix = "ever"}).size(), 600u);
  EXPECT_EQ(store->gauges().tombstones, 1200);
}

TEST_F(ExpiryTest, UseStartsTheTimeAgainAndABusyOneStays) {
  options.ttl = kHour;
  Make();
  ASSERT_TRUE(Turn("c").ok());
  const std::vector<std::function<void()>> uses = {
      [&] { EXPECT_TRUE(Turn("c").ok()); },
      [&] { EXPECT_TRUE(store->Peek(Want("c")).ok()); },
      [&] {
        EXPECT_TRUE(store->Rewind({"", "c"}, 1).ok());
      },
      [&] {
        EXPECT_TRUE(store->Fork({"", "c"}, 1, 1, {}).ok());
      },
  };
  for (const auto& use : uses) {
    Pass(kHour - absl::Seconds(1));
    use();
  }
  const Lease lease = *store->Acquire(Want("c"));
  Pass(100 * kHour);
  store->Expire();
  EXPECT_TRUE(store->Get({"", "c"})->busy);
  store->Release(lease, "r", "cancelled");
  EXPECT_TRUE(store->Get({"", "c"}).ok());
  Pass(kHour);
  store->Expire();
  EXPECT_FALSE(store->Get({"", "c"}).ok());
}

TEST_F(ExpiryTest, TtlIsOfTheConversationAndSetAtTheCommit) {
  options.ttl = kHour;
  Make();
  EXPECT_EQ(store->Create({"", "made"}, {.ttl = 5 * kHour})->ttl, 5 * kHour);
  EXPECT_EQ(store->Create({"", "ever"}, {.ttl = absl::InfiniteDuration()})->ttl,
            absl::InfiniteDuration());
  EXPECT_EQ(store->Create({"", "plain"})->ttl, kHour);
  LeaseRequest wanted = Want("plain");
  wanted.ttl = 3 * kHour;
  const Lease lease = *store->Acquire(wanted);
  store->Release(lease, "r", "cancelled");
  EXPECT_EQ(store->Get({"", "plain"})->ttl, kHour);
  ASSERT_TRUE(Turn(wanted).ok());
  EXPECT_EQ(store->Get({"", "plain"})->ttl, 3 * kHour);
  ASSERT_TRUE(Turn("plain").ok());
  EXPECT_EQ(store->Get({"", "plain"})->ttl, 3 * kHour);
  EXPECT_EQ(store->Fork({"", "plain"}, {}, 1, {"copy"})->at(0).ttl, 3 * kHour);
  EXPECT_EQ(store->Fork({"", "plain"}, {}, 1, {"own"}, {.ttl = kHour})->at(0).ttl, kHour);
}

TEST_F(ExpiryTest, AWallClockThatJumpsExpiresNothing) {
  options.ttl = kHour;
  absl::Duration jump;
  options.wall_now = [&] { return absl::FromUnixSeconds(1000000000) + jump; };
  Make();
  ASSERT_TRUE(Turn("c").ok());
  jump = 10000 * kHour;
  store->Expire();
  EXPECT_TRUE(store->Get({"", "c"}).ok());
}

TEST_F(ExpiryTest, TombstonesSayWhyAndAreBounded) {
  options.tombstones = 3;
  Make();
  ASSERT_TRUE(Turn("deleted").ok());
  ASSERT_TRUE(store->Delete({"", "deleted"}).ok());
  EXPECT_EQ(Metadata(store->Get({"", "deleted"}).status(), "reason"), "DELETED");
  EXPECT_EQ(Metadata(store->Delete({"", "deleted"}), "reason"), "DELETED");
  store->Release(*store->Acquire(Want("tried")), "r", "cancelled");
  EXPECT_EQ(Metadata(store->Get({"", "tried"}).status(), "reason"), "NOT_COMMITTED");
  EXPECT_EQ(Metadata(store->Get({"", "never"}).status(), "reason"), "");
  EXPECT_EQ(Reason(store->Get({"", "never"}).status()), "CONVERSATION_NOT_FOUND");
  EXPECT_EQ(store->gauges().deleted, 1);
  // Another tenant learns nothing.
  EXPECT_EQ(Metadata(store->Get({"other", "deleted"}).status(), "reason"), "");
  // An id that lives again has no past.
  ASSERT_TRUE(Turn("deleted").ok());
  EXPECT_TRUE(store->Get({"", "deleted"}).ok());
  for (const char* id : {"a", "b", "c", "d"}) {
    ASSERT_TRUE(Turn(id).ok());
    ASSERT_TRUE(store->Delete({"", id}).ok());
  }
  EXPECT_EQ(store->gauges().tombstones, 3);
  EXPECT_EQ(Metadata(store->Get({"", "a"}).status(), "reason"), "");
  EXPECT_EQ(Metadata(store->Get({"", "b"}).status(), "reason"), "DELETED");
  // Others' do not push one's own out.
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(Turn("x", "other").ok());
    ASSERT_TRUE(store->Delete({"other", "x"}).ok());
  }
  EXPECT_EQ(Metadata(store->Get({"", "b"}).status(), "reason"), "DELETED");
}

// ---- quotas

struct QuotaTest : StoreHarness {};

TEST_F(QuotaTest, Conversations) {
  quotas.conversations = 2;
  Make();
  ASSERT_TRUE(Turn("a").ok());
  ASSERT_TRUE(Turn("b").ok());
  EXPECT_EQ(Reason(Turn("c").status()), "TENANT_QUOTA");
  EXPECT_EQ(Reason(store->Create({"", "c"}, {.quotas = quotas}).status()), "TENANT_QUOTA");
  EXPECT_EQ(Reason(store->Fork({"", "a"}, {}, 1, {}, {.quotas = quotas}).status()), "TENANT_QUOTA");
  EXPECT_TRUE(Turn("a").ok());           // what is there goes on
  EXPECT_TRUE(Turn("c", "other").ok());  // each has its own
  ASSERT_TRUE(store->Delete({"", "a"}).ok());
  EXPECT_TRUE(Turn("c").ok());
}

TEST_F(QuotaTest, StatesOfTheTenantGoFirstThenTokensAreRefused) {
  quotas.bytes = 5600;
  Make();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Turn("mine").ok()) << i;
  quotas.bytes = 0;
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(Turn("theirs", "other").ok());
  quotas.bytes = 5600;
  const int64_t before = store->gauges().evictions;
  for (int i = 0; i < 6; ++i) ASSERT_TRUE(Turn("second").ok()) << i;
  EXPECT_GT(store->gauges().evictions, before);
  EXPECT_EQ(store->Get({"", "mine"})->state_bytes, 0);  // the least recently used
  EXPECT_GT(store->Get({"", "second"})->state_bytes, 0);
  EXPECT_EQ(store->Get({"other", "theirs"})->state_bytes, 4 * State(0)->bytes());
  // Tokens cannot be made again: they are never dropped, and refused when nothing but them is left.
  absl::Status refused;
  for (int i = 0; i < 100 && refused.ok(); ++i) refused = Turn("second").status();
  EXPECT_EQ(Reason(refused), "TENANT_QUOTA");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(store->Get({"", "second"})->busy);
  EXPECT_TRUE(Turn("theirs", "fresh").ok());
}

TEST_F(QuotaTest, AreHeldAtTheCommitToo) {
  quotas.bytes = 2000;
  Make();
  EXPECT_EQ(Reason(Turn(Want("c"), 1000).status()), "TENANT_QUOTA");
  EXPECT_FALSE(store->Get({"", "c"}).ok());
  EXPECT_EQ(store->gauges().token_bytes, 0);
}

TEST_F(QuotaTest, TokensOfForksCountOnceForWhoCommittedThem) {
  Make();
  ASSERT_TRUE(Turn(Want("c", "a"), 1000).ok());
  const int64_t before = store->gauges().token_bytes;
  ASSERT_TRUE(store->Fork({"a", "c"}, {}, 1, {"copy"}, {.tenant = "b"}).ok());
  EXPECT_LT(store->gauges().token_bytes - before, 1000);
  EXPECT_EQ(store->Peek({.key = {"b", "copy"}, .model = kTag})->tokens, 1001);
  ASSERT_TRUE(store->Delete({"a", "c"}).ok());
  EXPECT_GT(store->gauges().token_bytes, 4000);  // b still needs them
  ASSERT_TRUE(store->Delete({"b", "copy"}).ok());
  EXPECT_EQ(store->gauges().token_bytes, 0);
  EXPECT_EQ(store->gauges().snapshot_bytes, 0);
}

// ---- models

struct ModelTest : StoreHarness {
  LeaseRequest By(uint64_t fingerprint, OnModelMismatch mode = OnModelMismatch::kFail) {
    LeaseRequest wanted = Want("c");
    wanted.model = {fingerprint, 1};
    wanted.on_model_mismatch = mode;
    return wanted;
  }
};

TEST_F(ModelTest, AnotherModelFailsOrRebuilds) {
  Make();
  ASSERT_TRUE(Turn(By(3)).ok());
  const absl::Status failed = store->Acquire(By(4)).status();
  EXPECT_EQ(failed.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Reason(failed), "MODEL_MISMATCH");
  EXPECT_THAT(std::string(failed.message()), HasSubstr("0000000000000003"));
  EXPECT_FALSE(store->Get({"", "c"})->busy);
  const Lease lease = *store->Acquire(By(4, OnModelMismatch::kRebuild));
  EXPECT_EQ(lease.snapshot, nullptr);
  EXPECT_EQ(lease.miss, Miss::kModel);
  EXPECT_THAT(lease.pending, ElementsAre(7, 8));
  ASSERT_TRUE(store->Commit(lease, {7}, {8}, State(3, 4), "stop", "r").ok());
  EXPECT_EQ(store->Get({"", "c"})->model_fingerprint, 4u);
  const auto history = *store->History({"", "c"});
  EXPECT_EQ(history[0].model_fingerprint, 3u);
  EXPECT_EQ(history[1].model_fingerprint, 4u);
  // Now the first one has to rebuild the rest, from its own nearest state.
  EXPECT_EQ(Reason(store->Acquire(By(3)).status()), "MODEL_MISMATCH");
  const Lease back = *store->Acquire(By(3, OnModelMismatch::kRebuild));
  EXPECT_EQ(back.snapshot->consumed, 1);
  EXPECT_THAT(back.pending, ElementsAre(8, 7, 8));
  store->Release(back, "r", "cancelled");
  LeaseRequest old = By(3);
  old.base_version = 1;
  EXPECT_TRUE(store->Acquire(old).ok());  // its own version
}

TEST_F(ModelTest, TheMakerCountsAlsoWhenTheStateHasGone) {
  options.budget_bytes = 0;
  Make();
  ASSERT_TRUE(Turn(By(3)).ok());
  EXPECT_EQ(Reason(store->Acquire(By(4)).status()), "MODEL_MISMATCH");
  EXPECT_TRUE(store->Acquire(By(3)).ok());
}

TEST_F(ModelTest, AnEmptyConversationIsAnybodys) {
  Make();
  ASSERT_TRUE(store->Create({"", "c"}).ok());
  ASSERT_TRUE(Turn(By(4)).ok());
  LeaseRequest start = By(5);
  start.base_version = 0;
  EXPECT_TRUE(store->Acquire(start).ok());
}

TEST_F(ModelTest, AnotherVocabularyIsRefusedInEveryMode) {
  Make();
  ASSERT_TRUE(Turn(By(3)).ok());
  LeaseRequest wanted = By(4, OnModelMismatch::kRebuild);
  wanted.model.vocabulary = 2;
  EXPECT_EQ(Reason(store->Acquire(wanted).status()), "VOCABULARY_MISMATCH");
  EXPECT_EQ(Reason(store->Peek(wanted).status()), "VOCABULARY_MISMATCH");
  wanted.base_version = 0;
  EXPECT_EQ(Reason(store->Acquire(wanted).status()), "VOCABULARY_MISMATCH");
  ASSERT_TRUE(store->Fork({"", "c"}, {}, 1, {"copy"}).ok());
  wanted.key.id = "copy";
  EXPECT_EQ(Reason(store->Acquire(wanted).status()), "VOCABULARY_MISMATCH");
}

// ---- lines

struct LineTest : StoreHarness {
  uint64_t Join(const LeaseRequest& wanted, int* woken) {
    const auto ticket = store->Join(wanted, [woken] { ++*woken; });
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    return *ticket;
  }
  bool Waits(uint64_t ticket) {
    const auto lease = store->Claim(ticket);
    EXPECT_TRUE(lease.ok()) << lease.status();
    return lease.ok() && !lease->has_value();
  }
};

TEST_F(LineTest, FirstComeFirstServedAndNobodyJumps) {
  Make();
  Lease lease = *store->Acquire(Want("c"));
  int woken[2] = {0, 0};
  const uint64_t first = Join(Want("c"), &woken[0]);
  const uint64_t second = Join(Want("c"), &woken[1]);
  EXPECT_EQ(store->Ahead(first), 0);
  EXPECT_EQ(store->Ahead(second), 1);
  EXPECT_EQ(store->Get({"", "c"})->waiting, 2);
  EXPECT_EQ(store->gauges().waiting, 2);
  EXPECT_TRUE(Waits(first));
  ASSERT_TRUE(store->Commit(lease, {1}, {2}, State(1), "stop", "r").ok());
  EXPECT_EQ(woken[0], 1);
  EXPECT_EQ(woken[1], 0);
  // It is free, but not for those who did not wait.
  EXPECT_EQ(Reason(store->Acquire(Want("c")).status()), "CONVERSATION_BUSY");
  EXPECT_EQ(Reason(store->Delete({"", "c"})), "CONVERSATION_BUSY");
  EXPECT_EQ(Reason(store->Rewind({"", "c"}, 0).status()), "CONVERSATION_BUSY");
  EXPECT_TRUE(Waits(second));
  lease = **store->Claim(first);
  EXPECT_EQ(lease.base_version, 1);
  EXPECT_TRUE(Waits(second));
  store->Release(lease, "r", "cancelled");
  EXPECT_EQ(woken[1], 1);
  lease = **store->Claim(second);
  EXPECT_EQ(store->gauges().waiting, 0);
  store->Release(lease, "r", "cancelled");
  EXPECT_TRUE(store->Acquire(Want("c")).ok());
}

TEST_F(LineTest, AFreeOneIsHadAtOnce) {
  Make();
  int woken = 0;
  const uint64_t ticket = Join(Want("new"), &woken);
  EXPECT_EQ(woken, 1);
  EXPECT_TRUE((*store->Claim(ticket))->created);
}

TEST_F(LineTest, WhoeverLeavesOrFailsLetsTheNextOneOn) {
  Make();
  const Lease lease = *store->Acquire(Want("c"));
  int woken[3] = {0, 0, 0};
  LeaseRequest guarded = Want("c");
  guarded.expected_version = 0;
  const uint64_t leaves = Join(Want("c"), &woken[0]);
  const uint64_t fails = Join(guarded, &woken[1]);
  const uint64_t gets = Join(Want("c"), &woken[2]);
  ASSERT_TRUE(store->Commit(lease, {1}, {2}, nullptr, "stop", "r").ok());
  store->Leave(leaves);
  EXPECT_EQ(woken[1], 1);
  EXPECT_EQ(Reason(store->Claim(fails).status()), "VERSION_MISMATCH");
  EXPECT_EQ(woken[2], 1);
  EXPECT_TRUE((*store->Claim(gets)).has_value());
}

TEST_F(LineTest, WhenTheOneThatMadeItFailsTheNextMakesItOrNot) {
  Make();
  const Lease lease = *store->Acquire(Want("c"));
  int woken = 0;
  LeaseRequest existing = Want("c");
  existing.create_if_missing = false;
  const uint64_t finds_nothing = Join(existing, &woken);
  const uint64_t makes = Join(Want("c"), &woken);
  store->Release(lease, "r", "error");
  EXPECT_EQ(Metadata(store->Claim(finds_nothing).status(), "reason"), "NOT_COMMITTED");
  EXPECT_EQ(woken, 2);
  EXPECT_TRUE((*store->Claim(makes))->created);
}

TEST_F(LineTest, IsBounded) {
  options.max_waiting = 1;
  Make();
  const Lease lease = *store->Acquire(Want("c"));
  int woken = 0;
  const uint64_t ticket = Join(Want("c"), &woken);
  const absl::Status full = store->Join(Want("c"), [] {}).status();
  EXPECT_EQ(full.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Reason(full), "CONVERSATION_BUSY");
  store->Leave(ticket);
  EXPECT_TRUE(store->Join(Want("c"), [] {}).ok());
  EXPECT_TRUE(store->Join(Want("c", "other"), [] {}).ok());  // another line
}

TEST_F(LineTest, WaitedForIsInUse) {
  options.ttl = kHour;
  Make();
  const Lease lease = *store->Acquire(Want("c"));
  int woken = 0;
  const uint64_t ticket = Join(Want("c"), &woken);
  ASSERT_TRUE(store->Commit(lease, {1}, {2}, nullptr, "stop", "r").ok());
  Pass(2 * kHour);
  store->Expire();
  EXPECT_TRUE(store->Get({"", "c"}).ok());
  store->Leave(ticket);
  store->Expire();
  EXPECT_FALSE(store->Get({"", "c"}).ok());
}

// ---- lists and pages

struct ListTest : StoreHarness {};

TEST_F(ListTest, Filters) {
  Make();
  ASSERT_TRUE(store->Create({"", "empty"}).ok());
  Pass(kHour);
  ASSERT_TRUE(Turn("kept").ok());
  ASSERT_TRUE(Turn("kept", "other").ok());
  Pass(kHour);
  const Lease lease = *store->Acquire(Want("busy"));
  const absl::Time start = absl::FromUnixSeconds(1000000000);
  EXPECT_THAT(Ids({}), ElementsAre("busy", "empty", "kept"));
  EXPECT_THAT(Ids({.tenant = "other"}), ElementsAre("kept"));
  EXPECT_THAT(Ids({.busy = true}), ElementsAre("busy"));
  EXPECT_THAT(Ids({.busy = false}), ElementsAre("empty", "kept"));
  EXPECT_THAT(Ids({.has_state = true}), ElementsAre("kept"));
  EXPECT_THAT(Ids({.has_state = false}), ElementsAre("busy", "empty"));
  EXPECT_THAT(Ids({.used_since = start + kHour}), ElementsAre("busy", "kept"));
  EXPECT_THAT(Ids({.used_before = start + kHour}), ElementsAre("empty"));
  EXPECT_THAT(Ids({.busy = false, .used_since = start + kHour}), ElementsAre("kept"));
  EXPECT_THAT(Ids({.prefix = "k", .busy = true}), IsEmpty());
}

TEST_F(ListTest, PagesOfManyMeetEachOnceWhateverChanges) {
  Make();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(store->Create({"", absl::StrCat("s", 1000 + i)}).ok());
  std::vector<std::string> seen;
  std::string after;
  for (int page = 0; page < 20; ++page) {
    const std::vector<std::string> ids = Ids({.prefix = "s", .after = after, .limit = 77});
    seen.insert(seen.end(), ids.begin(), ids.end());
    if (ids.empty()) break;
    after = ids.back();
    // Also the one that the page ended with may go.
    ASSERT_TRUE(store->Delete({"", after}).ok());
    ASSERT_TRUE(store->Create({"", absl::StrCat("a", page)}).ok());
  }
  ASSERT_EQ(seen.size(), 1000u);
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(seen[i], absl::StrCat("s", 1000 + i));
}

TEST_F(ListTest, RareMatchesAreFoundAmongMany) {
  Make();
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(store->Create({"", absl::StrCat(1000 + i)}).ok());
  const Lease lease = *store->Acquire(Want("1900"));
  EXPECT_THAT(Ids({.limit = 1, .busy = true}), ElementsAre("1900"));
}

TEST_F(ListTest, HistoryComesInPages) {
  Make();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Turn("c").ok());
  const auto ids = [&](int64_t after, int32_t limit, int64_t tokens) {
    std::vector<int64_t> out;
    const auto history = store->History({"", "c"}, after, limit, tokens);
    for (const VersionInfo& v : *history) out.push_back(v.id);
    return out;
  };
  EXPECT_THAT(ids(0, 3, 1000), ElementsAre(1, 2, 3));
  EXPECT_THAT(ids(3, 3, 1000), ElementsAre(4, 5, 6));
  EXPECT_THAT(ids(9, 3, 1000), ElementsAre(10));
  EXPECT_THAT(ids(10, 3, 1000), IsEmpty());
  EXPECT_THAT(ids(0, 9, 3), ElementsAre(1, 2));  // two tokens each
  EXPECT_THAT(ids(0, 9, 1), ElementsAre(1));     // at least one
}

}  // namespace
}  // namespace skein::engine
