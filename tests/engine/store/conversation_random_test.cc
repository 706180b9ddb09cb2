// Random operations: one thread against a trivial model of what a conversation is, and many threads
// at once (for the sanitizers), whose every lease must be an exact prefix of some history.

#include <gmock/gmock.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "tests/engine/store/store_harness.h"

namespace skein::engine {
namespace {

using Tokens = std::vector<int32_t>;

// Other walks with --gtest_shuffle --gtest_random_seed=N.
int Seed(int n) { return n + 100 * ::testing::UnitTest::GetInstance()->random_seed(); }

// What a state over these tokens holds.
float StateOf(const Tokens& tokens, int64_t n) {
  uint32_t hash = 2166136261;
  for (int64_t i = 0; i < n; ++i) hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 16777619;
  return static_cast<float>(hash >> 8);
}

std::shared_ptr<const StateSnapshot> StateAfter(const Tokens& tokens, int64_t n) {
  auto snapshot = std::make_shared<StateSnapshot>();
  snapshot->model_fingerprint = kTag.fingerprint;
  snapshot->consumed = n;
  snapshot->state.assign(kFloats, StateOf(tokens, n));
  return snapshot;
}

Tokens Join(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A conversation as one would explain it.
struct Simple {
  struct Version {
    int64_t parent;
    Tokens all;
  };
  std::map<int64_t, Version> versions = {{0, {0, {}}}};
  int64_t head = 0, next = 1;
  absl::Duration ttl = absl::InfiniteDuration();
  absl::Duration used;
  std::optional<Lease> lease;
};

class Walk : public StoreHarness {
 public:
  using Map = std::map<ConversationKey, Simple>;

  int Pick(int n) { return static_cast<int>(random() % n); }
  ConversationKey AnyKey() { return {Pick(2) == 0 ? "" : "t", absl::StrCat("c", Pick(5))}; }
  // As the store does it on access.
  Map::iterator Find(const ConversationKey& key) {
    const auto it = model.find(key);
    if (it == model.end() || it->second.lease.has_value()) return it;
    if (passed < it->second.used + it->second.ttl) return it;
    model.erase(it);
    return model.end();
  }
  Simple& Insert(const ConversationKey& key, absl::Duration ttl) {
    Simple& made = model[key];
    made.ttl = ttl;
    made.used = passed;
    return made;
  }

  void Begin();
  void End();
  void Create();
  void Fork();
  void Rewind();
  void Delete();
  void Compare();
  void CheckLease(const Lease& lease, const Tokens& all);

  // One of two declared ones, which a reload replaces now and then; or none.
  std::shared_ptr<const PromptState> AnyPrompt() {
    if (Pick(3) != 0) return nullptr;
    std::shared_ptr<const PromptState>& prompt = prompts[Pick(2)];
    if (prompt != nullptr && Pick(5) != 0) return prompt;
    auto made = std::make_shared<PromptState>();
    made->name = "prompt";
    made->model = kTag;
    made->tokens.assign(1 + Pick(6), Pick(100));
    if (Pick(3) != 0) made->snapshot = StateAfter(made->tokens, std::ssize(made->tokens) - 1);
    return prompt = std::move(made);
  }

  std::mt19937 random;
  Map model;
  std::shared_ptr<const PromptState> prompts[2];
};

void Walk::CheckLease(const Lease& lease, const Tokens& all) {
  const int64_t consumed = lease.snapshot == nullptr ? 0 : lease.snapshot->consumed;
  ASSERT_LE(consumed, static_cast<int64_t>(all.size()));
  EXPECT_EQ(lease.pending, Tokens(all.begin() + consumed, all.end()));
  EXPECT_EQ(lease.tokens, static_cast<int64_t>(all.size()));
  if (lease.snapshot != nullptr) {
    EXPECT_EQ(lease.snapshot->state[0], StateOf(all, consumed));
  }
}

void Walk::Begin() {
  LeaseRequest wanted = {.key = AnyKey(), .model = kTag};
  wanted.create_if_missing = Pick(2) == 0;
  if (Pick(3) == 0) wanted.base_version = Pick(4);
  if (Pick(4) == 0) wanted.expected_version = Pick(4);
  if (Pick(4) == 0) wanted.ttl = absl::Seconds(1 + Pick(20));
  wanted.prompt = AnyPrompt();
  const auto it = Find(wanted.key);
  const bool exists = it != model.end();
  auto lease = store->Acquire(wanted);
  const int64_t head = exists ? it->second.head : 0;
  const int64_t base = wanted.base_version.value_or(head);
  std::string expected;
  if (!exists && !wanted.create_if_missing) {
    expected = "CONVERSATION_NOT_FOUND";
  } else if (exists && it->second.lease.has_value()) {
    expected = "CONVERSATION_BUSY";
  } else if (wanted.expected_version.value_or(head) != head) {
    expected = "VERSION_MISMATCH";
  } else if (exists ? !it->second.versions.contains(base) : base != 0) {
    expected = "VERSION_NOT_FOUND";
  } else if (wanted.prompt != nullptr && base != 0) {
    expected = "CONVERSATION_NOT_EMPTY";
  }
  ASSERT_EQ(Reason(lease.status()), expected) << wanted.key.id;
  if (!lease.ok()) return;
  Simple& simple = exists ? it->second : Insert(wanted.key, wanted.ttl.value_or(options.ttl));
  EXPECT_EQ(lease->created, !exists);
  EXPECT_EQ(lease->base_version, base);
  CheckLease(*lease,
             wanted.prompt != nullptr ? wanted.prompt->tokens : simple.versions.at(base).all);
  simple.used = passed;
  simple.lease = *std::move(lease);
}

void Walk::End() {
  const ConversationKey key = AnyKey();
  const auto it = model.find(key);
  if (it == model.end() || !it->second.lease.has_value()) return;
  Simple& simple = it->second;
  const Lease lease = *std::exchange(simple.lease, std::nullopt);
  simple.used = passed;
  if (Pick(4) == 0) {
    store->Release(lease, "r", "cancelled");
    if (lease.created) model.erase(it);
    return;
  }
  const Tokens input(Pick(4), Pick(100)), output(Pick(4), Pick(100));
  const Tokens before =
      lease.prompt != nullptr ? lease.prompt->tokens : simple.versions.at(lease.base_version).all;
  const Tokens all = Join(Join(before, input), output);
  std::shared_ptr<const StateSnapshot> state;
  if (Pick(4) != 0) state = StateAfter(all, Pick(static_cast<int>(all.size()) + 1));
  const auto version = store->Commit(lease, input, output, state, "stop", "r");
  ASSERT_TRUE(version.ok()) << version.status();
  int64_t parent = lease.base_version;
  if (lease.prompt != nullptr) {
    parent = simple.next++;
    simple.versions[parent] = {0, before};
  }
  ASSERT_EQ(*version, simple.next);
  simple.versions[simple.next] = {parent, all};
  simple.head = simple.next++;
  simple.ttl = lease.ttl.value_or(simple.ttl);
}

void Walk::Create() {
  const ConversationKey key = AnyKey();
  const bool exists = Find(key) != model.end();
  NewConversation made;
  made.prompt = AnyPrompt();
  ASSERT_EQ(Reason(store->Create(key, made).status()), exists ? "CONVERSATION_EXISTS" : "");
  if (exists) return;
  Simple& simple = Insert(key, options.ttl);
  if (made.prompt == nullptr) return;
  simple.head = simple.next++;
  simple.versions[simple.head] = {0, made.prompt->tokens};
}

void Walk::Fork() {
  const ConversationKey from = AnyKey(), to = AnyKey();
  std::optional<int64_t> version;
  if (Pick(2) == 0) version = Pick(4);
  NewConversation made;
  made.tenant = to.tenant;
  const bool taken = Find(to) != model.end();
  const auto source = Find(from);
  const auto copies = store->Fork(from, version, 1, {to.id}, made);
  std::string expected;
  if (taken) {
    expected = "CONVERSATION_EXISTS";
  } else if (source == model.end()) {
    expected = "CONVERSATION_NOT_FOUND";
  } else if (!source->second.versions.contains(version.value_or(source->second.head))) {
    expected = "VERSION_NOT_FOUND";
  }
  ASSERT_EQ(Reason(copies.status()), expected);
  if (!copies.ok()) return;
  source->second.used = passed;
  Simple& copy = Insert(to, source->second.ttl);
  copy.head = version.value_or(source->second.head);
  copy.next = copy.head + 1;
  for (int64_t v = copy.head; v != 0; v = copy.versions.at(v).parent) {
    copy.versions[v] = source->second.versions.at(v);
  }
}

void Walk::Rewind() {
  const ConversationKey key = AnyKey();
  const int64_t version = Pick(5);
  const auto it = Find(key);
  std::string expected;
  if (it == model.end()) {
    expected = "CONVERSATION_NOT_FOUND";
  } else if (it->second.lease.has_value()) {
    expected = "CONVERSATION_BUSY";
  } else if (!it->second.versions.contains(version)) {
    expected = "VERSION_NOT_FOUND";
  }
  ASSERT_EQ(Reason(store->Rewind(key, version).status()), expected);
  if (!expected.empty()) return;
  it->second.head = version;
  it->second.used = passed;
}

void Walk::Delete() {
  const ConversationKey key = AnyKey();
  const auto it = Find(key);
  std::string expected;
  if (it == model.end()) {
    expected = "CONVERSATION_NOT_FOUND";
  } else if (it->second.lease.has_value()) {
    expected = "CONVERSATION_BUSY";
  }
  ASSERT_EQ(Reason(store->Delete(key)), expected);
  if (expected.empty()) model.erase(it);
}

void Walk::Compare() {
  for (auto it = model.begin(); it != model.end();) {
    const ConversationKey key = (it++)->first;
    Find(key);  // what has expired goes
  }
  for (const char* tenant : {"", "t"}) {
    std::vector<std::string> ids;
    for (const auto& [key, simple] : model) {
      if (key.tenant == tenant) ids.push_back(key.id);
    }
    ASSERT_EQ(Ids({.tenant = tenant}), ids);
  }
  for (const auto& [key, simple] : model) {
    const auto info = store->Get(key);
    ASSERT_TRUE(info.ok());
    ASSERT_EQ(info->head, simple.head);
    ASSERT_EQ(info->tokens, static_cast<int64_t>(simple.versions.at(simple.head).all.size()));
    ASSERT_EQ(info->busy, simple.lease.has_value());
    ASSERT_EQ(info->ttl, simple.ttl);
    const auto history = store->History(key);
    ASSERT_EQ(history->size() + 1, simple.versions.size());
    for (const VersionInfo& version : *history) {
      const Simple::Version& expected = simple.versions.at(version.id);
      ASSERT_EQ(version.parent, expected.parent);
      ASSERT_EQ(Join(Join(simple.versions.at(version.parent).all, version.input), version.output),
                expected.all);
    }
  }
  store->Expire();  // until then the expired ones are only hidden
  const ConversationStoreGauges gauges = store->gauges();
  ASSERT_EQ(gauges.conversations, static_cast<int64_t>(model.size()));
  ASSERT_LE(gauges.snapshot_bytes, options.budget_bytes);
}

class RandomWalk : public Walk, public ::testing::WithParamInterface<int> {};

TEST_P(RandomWalk, EqualsTheSimpleModel) {
  random.seed(Seed(GetParam()));
  options.budget_bytes = (1 + Pick(12)) * State(0)->bytes();
  options.history = 1 + Pick(3);
  options.tombstones = Pick(5);
  if (Pick(2) == 0) options.ttl = absl::Seconds(5 + Pick(20));
  Make();
  for (int i = 0; i < 1500 && !HasFatalFailure(); ++i) {
    switch (Pick(12)) {
      case 0:
        Create();
        break;
      case 1:
        Fork();
        break;
      case 2:
        Rewind();
        break;
      case 3:
        if (Pick(2) == 0) Delete();
        break;
      case 4:
        Pass(absl::Seconds(Pick(4)));
        if (Pick(2) == 0) store->Expire();
        break;
      case 5:
        Compare();
        break;
      case 6:
      case 7:
      case 8:
        Begin();
        break;
      default:
        End();
        break;
    }
  }
  Compare();
  for (auto& [key, simple] : model) {
    if (simple.lease.has_value()) store->Release(*simple.lease, "r", "end");
    store->Delete(key).IgnoreError();  // one made by its lease has gone
  }
  EXPECT_EQ(store->gauges().conversations, 0);
  EXPECT_EQ(store->gauges().token_bytes, 0);
  EXPECT_EQ(store->gauges().snapshot_bytes, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomWalk, ::testing::Range(0, 20));

// ---- many threads

class ConcurrentWalk : public StoreHarness {
 public:
  // The tokens of a version, and with it that a lease is exact.
  void Check(const Lease& lease) {
    Tokens all;
    if (lease.base_version != 0) {
      const auto history = store->History(lease.key);  // it cannot go while it is leased
      ASSERT_TRUE(history.ok());
      std::map<int64_t, const VersionInfo*> by_id;
      for (const VersionInfo& version : *history) by_id[version.id] = &version;
      for (int64_t v = lease.base_version; v != 0; v = by_id.at(v)->parent) {
        all = Join(Join(by_id.at(v)->input, by_id.at(v)->output), all);
      }
    }
    const int64_t consumed = lease.snapshot == nullptr ? 0 : lease.snapshot->consumed;
    EXPECT_EQ(lease.pending, Tokens(all.begin() + consumed, all.end()));
    if (lease.snapshot != nullptr) {
      EXPECT_EQ(lease.snapshot->state[0], StateOf(all, consumed));
    }
    const bool alone = writers[lease.key.id[1] - '0'].fetch_add(1) == 0;
    EXPECT_TRUE(alone) << "two writers of " << lease.key.id;
    std::this_thread::yield();
    writers[lease.key.id[1] - '0'].fetch_sub(1);
    Finish(lease, all);
  }
  void Finish(const Lease& lease, Tokens all) {
    const int32_t token = static_cast<int32_t>(all.size());
    if (token % 5 == 4) return store->Release(lease, "r", "cancelled");
    all = Join(all, {token, token + 1});
    const auto version =
        store->Commit(lease, {token}, {token + 1}, StateAfter(all, all.size() - 1), "stop", "r");
    if (!version.ok()) store->Release(lease, "r", "error");
  }
  // Takes a turn, in the line when it has to.
  void TakeTurn(const std::string& id, bool patient) {
    auto lease = store->Acquire(Want(id));
    if (lease.ok()) return Check(*lease);
    if (!patient || !absl::IsAborted(lease.status())) return;
    auto free = std::make_shared<std::atomic<int>>(0);
    const auto ticket = store->Join(Want(id), [free] { free->store(1); });
    if (!ticket.ok()) return;
    for (int spins = 0; spins < 2000; ++spins) {
      if (free->exchange(0) != 0) {
        auto claimed = store->Claim(*ticket);
        if (!claimed.ok()) return;
        if (claimed->has_value()) return Check(**claimed);
      }
      std::this_thread::yield();
    }
    store->Leave(*ticket);
    gave_up.fetch_add(1);
  }
  void Client(int seed, int rounds) {
    std::mt19937 random(Seed(seed));
    const auto pick = [&](int n) { return static_cast<int>(random() % n); };
    for (int i = 0; i < rounds; ++i) {
      const std::string id = absl::StrCat("c", pick(4));
      switch (pick(10)) {
        case 0:
          store->Delete({"", id}).IgnoreError();
          break;
        case 1:
          store->Rewind({"", id}, pick(3)).IgnoreError();
          break;
        case 2:
          store->Fork({"", id}, {}, 1, {absl::StrCat("c", pick(4))}).IgnoreError();
          break;
        case 3:
          store->List({.limit = 3, .has_state = true});
          break;
        case 4:
          store->History({"", id}, 0, 2, 10).IgnoreError();
          store->Peek(Want(id)).IgnoreError();
          break;
        default:
          TakeTurn(id, pick(2) == 0);
          break;
      }
    }
  }
  std::atomic<int> writers[4] = {};
  std::atomic<int> gave_up{0};
};

TEST_F(ConcurrentWalk, ManyClientsOneWriterAConversation) {
  options.budget_bytes = 5 * State(0)->bytes();
  options.history = 2;
  options.tombstones = 3;
  options.max_waiting = 3;
  options.ttl = absl::Milliseconds(3);
  options.wall_now = absl::Now;
  options.steady_now = MonotonicNow;
  quotas.bytes = 20000;
  Make();
  std::vector<std::thread> threads;
  for (int seed = 0; seed < 6; ++seed) threads.emplace_back([this, seed] { Client(seed, 400); });
  std::atomic<bool> stop{false};
  std::thread timer([&] {
    while (!stop) {
      store->Expire();
      store->gauges();
      absl::SleepFor(absl::Microseconds(500));
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  timer.join();
  absl::SleepFor(absl::Milliseconds(10));
  store->Expire();
  const ConversationStoreGauges gauges = store->gauges();
  EXPECT_EQ(gauges.conversations, 0);  // all have expired: none is left busy, none waited for
  EXPECT_EQ(gauges.waiting, 0);
  EXPECT_EQ(gauges.token_bytes, 0);
  EXPECT_EQ(gauges.snapshot_bytes, 0);
  EXPECT_GT(gauges.expired, 0);
}

}  // namespace
}  // namespace skein::engine
