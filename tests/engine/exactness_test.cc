// The state is an exact function of the tokens consumed, whatever else happens: neighbours, chunks,
// evictions, threads.

#include <gmock/gmock.h>

#include <random>
#include <thread>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

TEST(Exactness, ARowAmongManyEqualsTheRowAlone) {
  Harness h;
  h.options.slots = 16;
  h.Start();
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  const auto request = [&](int i) {
    GenerateRequest request =
        h.Request({1 + i, 2 + i, 3}, absl::StrCat("c", i, "-", h.model.steps.load()));
    for (int t = 0; t < 7 * i; ++t) request.input.push_back(1 + t % 200);
    request.stopping.max_tokens = 20 + i;
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
    request.sampling.frequency_penalty = 0.3f;
    request.sampling.penalty_decay = 0.9f;
    request.sampling.seed = i;
    return request;
  };
  for (int i = 0; i < 48; ++i) sinks.push_back(h.Submit(request(i)));
  for (const auto& sink : sinks) sink->Wait();
  for (int i = 0; i < 48; ++i) EXPECT_EQ(sinks[i]->tokens(), h.Run(request(i))->tokens()) << i;
}

TEST(Exactness, EvictedStatesAreRebuilt) {
  Harness h;
  h.store_options.budget_bytes = 1000;  // three snapshots
  h.Start();
  std::map<std::string, std::vector<int32_t>> expected;
  bool rebuilt = false;
  for (int turn = 0; turn < 4; ++turn) {
    for (int c = 0; c < 8; ++c) {
      const std::string id = absl::StrCat("c", c);
      const auto sink = h.Run(h.Request({1 + c, 2 + turn}, id));
      expected[id] = Join(Join(expected[id], {1 + c, 2 + turn}), sink->tokens());
      rebuilt |= sink->started->restored_from == "tokens";
      ASSERT_EQ(h.Tokens(id), expected[id]);
      ASSERT_EQ(sink->tokens(),
                h.OneShot(std::vector<int32_t>(expected[id].begin(), expected[id].end() - 4), 4));
    }
  }
  EXPECT_TRUE(rebuilt);
  EXPECT_GT(h.engine->conversations().gauges().evictions, 0);
  EXPECT_GT(h.engine->conversations().gauges().misses, 0);
  for (int c = 0; c < 8; ++c) h.ExpectExact(absl::StrCat("c", c), 2);
}

// One client: random turns, forks, rewinds, cancels on its own conversations and shared ones.
void RandomClient(Harness* h, int seed, int rounds) {
  std::mt19937 random(seed);
  const auto pick = [&](int n) { return static_cast<int>(random() % n); };
  ConversationStore& store = h->engine->conversations();
  for (int i = 0; i < rounds; ++i) {
    const std::string id = absl::StrCat("c", pick(6));
    switch (pick(8)) {
      case 0:
        store.Delete({"", id}).IgnoreError();
        continue;
      case 1:
        store.Rewind({"", id}, pick(4)).IgnoreError();
        continue;
      case 2:
        store.Fork({"", id}, std::nullopt, 1, {absl::StrCat("c", pick(6))}).IgnoreError();
        continue;
      case 3:
        store.List({.limit = 10});
        continue;
      default:
        break;
    }
    GenerateRequest request = h->Request({1 + pick(200), 1 + pick(200)}, id);
    request.stopping.max_tokens = pick(12);
    request.stopping.stop_strings = {"\x41\x42", "\x43"};
    request.stopping.ignore_eos = false;
    request.sampling.temperature = 1;
    request.commit = static_cast<CommitMode>(pick(3));
    if (pick(4) == 0) request.base_version = pick(3);
    if (pick(6) == 0) request.deadline = absl::Now() + absl::Microseconds(200 + pick(2000));
    if (pick(6) == 0) request.stopping.max_time = absl::Microseconds(200 + pick(2000));
    auto sink = std::make_shared<CollectingSink>();
    sink->writable = pick(5) != 0;
    if (!h->engine->Submit(request, sink).ok()) continue;
    if (pick(4) == 0) h->engine->Cancel(request.request_id, pick(2) == 0);
    sink->writable = true;
    sink->Wait();
  }
}

// Six at once, beside one that looks on.
void RandomClients(Harness* h, int round) {
  std::vector<std::thread> clients;
  for (int i = 0; i < 6; ++i) clients.emplace_back(RandomClient, h, 6 * round + i, 150);
  std::thread watcher([h] {
    for (int i = 0; i < 200; ++i) {
      h->engine->gauges();
      h->engine->healthy();
      h->engine->RetryDelay();
      absl::SleepFor(absl::Milliseconds(1));
    }
  });
  for (std::thread& client : clients) client.join();
  watcher.join();
}

void CheckIdle(const Harness& h) {
  const EngineGauges gauges = h.engine->gauges();
  EXPECT_EQ(gauges.running, 0);
  EXPECT_EQ(gauges.waiting, 0);
  EXPECT_EQ(gauges.waiting_tokens, 0);
  EXPECT_EQ(gauges.slots_used, 0);
}

TEST(Exactness, RandomOperationsOfManyClients) {
  Harness h;
  h.options.slots = 3;
  h.options.max_queued = 4;
  h.options.output_shards = 2;
  h.store_options.budget_bytes = 3000;
  h.store_options.history = 2;
  h.Start();
  // What a round leaves depends on timing, and may be little.
  for (int round = 0, checked = 0; checked <= 5; ++round) {
    ASSERT_LT(round, 50);
    RandomClients(&h, round);
    CheckIdle(h);
    for (const ConversationInfo& info : h.engine->conversations().List({})) {
      EXPECT_FALSE(info.busy);
      const auto history = h.engine->conversations().History({"", info.id});
      for (const VersionInfo& version : *history) {
        if (version.tokens == 0) continue;
        h.ExpectExact(info.id, version.id);
        ++checked;
      }
    }
  }
}

TEST(Exactness, ConcurrentDrainAndUndrain) {
  Harness h;
  h.options.slots = 2;
  h.Start();
  std::atomic<bool> stop{false};
  std::vector<std::thread> clients;
  for (int seed = 0; seed < 3; ++seed) {
    clients.emplace_back([&] {
      while (!stop) {
        GenerateRequest request = h.Request({1, 2, 3});
        request.stopping.max_tokens = 50;
        auto sink = std::make_shared<CollectingSink>();
        if (!h.engine->Submit(request, sink).ok()) continue;
        sink->Wait();
        ASSERT_TRUE(sink->finished.has_value());
      }
    });
  }
  for (int i = 0; i < 20; ++i) {
    h.engine->Drain(absl::Now() + absl::Milliseconds(i % 3));
    EXPECT_EQ(h.engine->gauges().running, 0);
    h.engine->Undrain();
    absl::SleepFor(absl::Milliseconds(2));
  }
  stop = true;
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace skein::engine
