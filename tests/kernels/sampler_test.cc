// The sampler against a straightforward one: sort everything, add doubles, walk.

#include "kernels/cpu/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kernels/cpu/philox.h"
#include "tests/kernels/op_cases.h"

namespace skein::kernels {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<double> Softmax(const std::vector<double>& keys, double temperature) {
  const double max = *std::max_element(keys.begin(), keys.end());
  std::vector<double> p(keys.size());
  double sum = 0;
  for (size_t i = 0; i < keys.size(); ++i) sum += p[i] = std::exp((keys[i] - max) / temperature);
  for (double& v : p) v /= sum;
  return p;
}

std::vector<double> AdjustedKeys(const float* logits, int vocab, const SampleRow& row) {
  std::vector<double> keys(logits, logits + vocab);
  for (int i = 0; i < row.num_bias; ++i) {
    if (row.bias[i].token >= 0 && row.bias[i].token < vocab)
      keys[row.bias[i].token] += row.bias[i].value;
  }
  for (int i = 0; i < vocab && row.mask != nullptr; ++i) {
    if ((row.mask[i / 32] >> (i % 32) & 1) == 0) keys[i] = -INFINITY;
  }
  for (int i = 0; i < row.num_counts; ++i) {
    const TokenValue& c = row.counts[i];
    if (c.token < 0 || c.token >= vocab) continue;
    double& key = keys[c.token];
    key = key > 0 ? key / row.repetition_penalty : key * row.repetition_penalty;
    key -= double{row.presence_penalty} + double{row.frequency_penalty} * c.value;
  }
  return keys;
}

// Which ids the filters keep.
std::vector<bool> Kept(const std::vector<double>& keys, const std::vector<double>& p,
                       const SampleRow& row) {
  const size_t n = keys.size();
  std::vector<int> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  size_t count = n;
  if (row.top_k > 0) count = std::min<size_t>(count, row.top_k);
  if (row.top_p < 1) {
    double mass = 0, taken = 0;
    for (size_t i = 0; i < count; ++i) mass += p[order[i]];
    size_t i = 0;
    while (i < count) {
      taken += p[order[i++]];
      if (taken >= double{row.top_p} * mass) break;
    }
    count = i;
  }
  std::vector<bool> kept(n, false);
  for (size_t i = 0; i < count; ++i)
    kept[order[i]] = p[order[i]] >= double{row.min_p} * p[order[0]];
  return kept;
}

int Reference(const float* logits, int vocab, const SampleRow& row) {
  const std::vector<double> keys = AdjustedKeys(logits, vocab, row);
  if (row.temperature < 1e-6f) {
    return static_cast<int>(std::max_element(keys.begin(), keys.end()) - keys.begin());
  }
  const std::vector<double> p = Softmax(keys, row.temperature);
  const std::vector<bool> kept =
      Kept(keys, row.top_p_before_temperature ? Softmax(keys, 1.0) : p, row);
  double mass = 0, sum = 0;
  for (int i = 0; i < vocab; ++i) mass += kept[i] ? p[i] : 0;
  const double target = PhiloxUniform(row.seed, row.position) * mass;
  int last = -1;
  for (int i = 0; i < vocab; ++i) {
    if (!kept[i] || p[i] == 0) continue;
    last = i;
    sum += p[i];
    if (sum > target) return i;
  }
  return last;
}

std::vector<SampleResult> Sample(const Floats& logits, int V, int vocab,
                                 const std::vector<SampleRow>& rows, int threads = 2) {
  TestStream stream(threads);
  Floats scratch(int64_t{threads} * 2 * V);
  std::vector<SampleResult> results(rows.size());
  SampleParams p;
  p.logits = logits.get();
  p.n = static_cast<int32_t>(rows.size());
  p.V = V;
  p.vocab = vocab;
  p.rows = rows.data();
  p.results = results.data();
  p.scratch = scratch.get();
  SampleRows(p, stream);
  // Every tier gives the same, bit for bit.
  for (const Tier* tier : MachineTiers()) {
    std::vector<SampleResult> others(results.size());
    p.results = others.data();
    tier->ops().sample(p, stream);
    for (size_t i = 0; i < results.size(); ++i) {
      EXPECT_EQ(others[i].token, results[i].token) << tier->name;
      EXPECT_EQ(std::memcmp(&others[i].logprob, &results[i].logprob, sizeof(float)), 0)
          << tier->name;
      EXPECT_EQ(others[i].num_top, results[i].num_top);
    }
  }
  return results;
}

struct Setting {
  const char* name;
  SampleRow row;
};

std::vector<Setting> Settings() {
  std::vector<Setting> s;
  const auto add = [&s](const char* name, auto change) {
    Setting setting{name, {}};
    change(setting.row);
    s.push_back(setting);
  };
  add("plain", [](SampleRow&) {});
  add("greedy", [](SampleRow& r) { r.temperature = 0; });
  add("hot", [](SampleRow& r) { r.temperature = 3; });
  add("cold", [](SampleRow& r) { r.temperature = 0.05f; });
  add("top_k 1", [](SampleRow& r) { r.top_k = 1; });
  add("top_k 40", [](SampleRow& r) { r.top_k = 40; });
  add("top_k all", [](SampleRow& r) { r.top_k = 1 << 20; });
  add("top_p 0", [](SampleRow& r) { r.top_p = 0; });
  add("top_p 0.3", [](SampleRow& r) { r.top_p = 0.3f; });
  add("top_p 0.95", [](SampleRow& r) { r.top_p = 0.95f; });
  add("min_p", [](SampleRow& r) { r.min_p = 0.05f; });
  add("min_p 1", [](SampleRow& r) { r.min_p = 1; });
  add("all filters", [](SampleRow& r) {
    r.top_k = 500;
    r.top_p = 0.9f;
    r.min_p = 0.01f;
    r.temperature = 1.3f;
  });
  add("filters before temperature", [](SampleRow& r) {
    r.top_p = 0.5f;
    r.temperature = 2;
    r.top_p_before_temperature = true;
  });
  return s;
}

TEST(Sampler, EqualsTheReferenceOverVocabulariesSpreadsAndSettings) {
  std::mt19937 rng(1);
  for (int V : {1, 5, 260, 4099, 65536}) {
    const int vocab = V > 10 ? V - 6 : V;
    for (float spread : {0.02f, 1.0f, 6.0f}) {  // from nearly flat to sharp
      const std::vector<Setting> settings = Settings();
      const Floats logits = RandomFloats(int64_t{V} * settings.size(), rng, spread);
      std::vector<SampleRow> rows;
      for (size_t i = 0; i < settings.size(); ++i) {
        rows.push_back(settings[i].row);
        rows.back().seed = rng();
        rows.back().position = i;
      }
      const std::vector<SampleResult> results = Sample(logits, V, vocab, rows);
      for (size_t i = 0; i < rows.size(); ++i) {
        EXPECT_EQ(results[i].token, Reference(&logits[static_cast<int64_t>(i) * V], vocab, rows[i]))
            << settings[i].name << ", V " << V << ", spread " << spread;
      }
    }
  }
}

TEST(Sampler, PenaltiesBiasBansAndMask) {
  std::mt19937 rng(2);
  const int V = 300, vocab = 290;
  for (int round = 0; round < 60; ++round) {
    const Floats logits = RandomFloats(V, rng, 2.0f);
    std::vector<TokenValue> counts, bias;
    std::vector<uint32_t> mask((V + 31) / 32);
    for (uint32_t& word : mask) word = static_cast<uint32_t>(rng());
    for (int i = 0; i < 40; ++i) counts.push_back({i * 7, 0.5f + static_cast<float>(rng() % 5)});
    for (int i = 0; i < 20; ++i)
      bias.push_back({i * 11, i % 3 == 0 ? -kInf : static_cast<float>(i) / 4 - 2});
    counts.push_back({295, 3});  // beyond the vocabulary: no effect
    bias.push_back({-1, 3});
    SampleRow row;
    row.temperature = round % 3 == 0 ? 0 : 0.8f;
    row.top_p = round % 2 == 0 ? 0.9f : 1;
    row.presence_penalty = 0.7f;
    row.frequency_penalty = 0.3f;
    row.repetition_penalty = round % 4 == 0 ? 1.0f : 1.3f;
    row.seed = round;
    row.counts = counts.data();
    row.num_counts = static_cast<int>(counts.size());
    row.bias = bias.data();
    row.num_bias = static_cast<int>(bias.size());
    row.mask = round % 5 == 0 ? nullptr : mask.data();
    const SampleResult result = Sample(logits, V, vocab, {row})[0];
    EXPECT_EQ(result.token, Reference(logits.get(), vocab, row)) << round;
    for (const TokenValue& b : bias) {
      if (b.value == -kInf) {
        EXPECT_NE(result.token, b.token);
      }
    }
  }
}

TEST(Sampler, TiesGoToTheLowestId) {
  for (float level :
       {0.0f, 1.5f, -3.0f, 1e-39f}) {  // zero and a denormal: compared with denormals flushed
    Floats logits(2000);
    for (int i = 0; i < 2000; ++i) logits[i] = level;
    SampleRow greedy, few;
    greedy.temperature = 0;
    few.top_k = 3;
    SampleRow half;
    half.top_p = 0.5f;
    for (int seed = 0; seed < 50; ++seed) {
      few.seed = half.seed = seed;
      EXPECT_EQ(Sample(logits, 2000, 2000, {greedy})[0].token, 0);
      EXPECT_LT(Sample(logits, 2000, 2000, {few})[0].token, 3);
      EXPECT_LT(Sample(logits, 2000, 2000, {half})[0].token, 1000);
    }
  }
}

TEST(Sampler, BadLogitsAndTotalBansGiveMinusOne) {
  const int V = 77;
  std::mt19937 rng(3);
  SampleRow row;
  for (float bad : {NAN, kInf}) {
    for (int at : {0, 40, 76}) {
      Floats logits = RandomFloats(V, rng);
      logits[at] = bad;
      EXPECT_EQ(Sample(logits, V, V, {row})[0].token, -1);
    }
  }
  Floats nothing(V);
  for (int i = 0; i < V; ++i) nothing[i] = -kInf;
  EXPECT_EQ(Sample(nothing, V, V, {row})[0].token, -1);
  const Floats logits = RandomFloats(V, rng);
  const std::vector<uint32_t> closed(3, 0);
  row.mask = closed.data();
  EXPECT_EQ(Sample(logits, V, V, {row})[0].token, -1);
  Floats some = RandomFloats(V, rng);
  some[3] = -kInf;  // one banned logit is nothing unusual
  row.mask = nullptr;
  EXPECT_GE(Sample(some, V, V, {row})[0].token, 0);
}

TEST(Sampler, ReportsRawLogProbabilities) {
  std::mt19937 rng(4);
  const int V = 1003, vocab = 1000;
  Floats logits = RandomFloats(V, rng, 3.0f);
  logits[10] = logits[20] = 30.0f;  // a tie at the top
  std::vector<double> raw(logits.get(), logits.get() + V);
  const std::vector<double> p = Softmax(raw, 1.0);
  const TokenValue ban{10, -kInf};
  SampleRow row;
  row.temperature = 0;
  row.bias = &ban;
  row.num_bias = 1;
  for (int wanted : {0, 1, 20, 50}) {
    row.num_logprobs = wanted;
    const SampleResult result = Sample(logits, V, vocab, {row})[0];
    EXPECT_EQ(result.token, 20);
    EXPECT_NEAR(result.logprob, std::log(p[20]), 1e-6);
    EXPECT_EQ(result.num_top, std::min(wanted, kMaxTopLogprobs));
    for (int i = 0; i < result.num_top; ++i) {
      EXPECT_NEAR(result.top[i].value, std::log(p[result.top[i].token]), 2e-6);
      if (i > 0) {
        EXPECT_GE(result.top[i - 1].value, result.top[i].value);
      }
    }
    if (wanted > 1) {
      EXPECT_EQ(result.top[0].token, 10);  // bans do not change what the model says
      EXPECT_EQ(result.top[1].token, 20);
    }
  }
}

// Pearson's statistic of 20,000 draws against the kept probabilities.
TEST(Sampler, DrawsFollowTheDistribution) {
  std::mt19937 rng(5);
  const int V = 400;
  const Floats logits = RandomFloats(V, rng, 1.5f);
  for (float top_p : {1.0f, 0.8f}) {
    SampleRow row;
    row.temperature = 0.9f;
    row.top_p = top_p;
    row.seed = 12345;
    std::vector<double> keys(logits.get(), logits.get() + V), p = Softmax(keys, row.temperature);
    const std::vector<bool> kept = Kept(keys, p, row);
    double mass = 0;
    for (int i = 0; i < V; ++i) mass += kept[i] ? p[i] : 0;
    constexpr int kDraws = 20000, kBatch = 200;
    std::vector<int> seen(V, 0);
    Floats batch(kBatch * V);
    for (int i = 0; i < kBatch; ++i) std::memcpy(&batch[i * V], logits.get(), 4 * V);
    for (int draw = 0; draw < kDraws; draw += kBatch) {
      std::vector<SampleRow> rows(kBatch, row);
      for (int i = 0; i < kBatch; ++i) rows[i].position = draw + i;
      for (const SampleResult& result : Sample(batch, V, V, rows)) ++seen[result.token];
    }
    double statistic = 0, rest_expected = 0, rest_seen = 0;
    int cells = 0;
    const auto cell = [&](double expected, double observed) {
      statistic += (observed - expected) * (observed - expected) / expected;
      ++cells;
    };
    for (int i = 0; i < V; ++i) {
      if (!kept[i]) {
        EXPECT_EQ(seen[i], 0);
        continue;
      }
      const double expected = kDraws * p[i] / mass;
      if (expected >= 10) {
        cell(expected, seen[i]);
      } else {
        rest_expected += expected;
        rest_seen += seen[i];
      }
    }
    if (rest_expected >= 10) cell(rest_expected, rest_seen);
    const double freedom = cells - 1;
    EXPECT_LT(statistic, freedom + 4 * std::sqrt(2 * freedom)) << "top_p " << top_p;
    EXPECT_GT(statistic, freedom - 4 * std::sqrt(2 * freedom)) << "top_p " << top_p;
  }
}

TEST(Sampler, ARowDoesNotDependOnItsNeighboursOrTheThreads) {
  std::mt19937 rng(6);
  const int V = 5000, n = 33;
  const Floats logits = RandomFloats(n * V, rng, 2.0f);
  std::vector<SampleRow> rows(n);
  for (int i = 0; i < n; ++i) {
    rows[i].seed = i;
    rows[i].top_p = i % 2 == 0 ? 0.9f : 1;
  }
  const std::vector<SampleResult> together = Sample(logits, V, V, rows, 3);
  for (int i = 0; i < n; ++i) {
    Floats one(V);
    std::memcpy(one.get(), &logits[i * V], 4 * V);
    const SampleResult alone = Sample(one, V, V, {rows[i]}, 1)[0];
    EXPECT_EQ(alone.token, together[i].token);
    EXPECT_EQ(alone.logprob, together[i].logprob);
  }
}

TEST(Sampler, PhiloxIsTheRealOne) {
  // Philox4x32-10 of counter 0 and key 0: 6627e8d5 e169c58d ... (the authors' known-answer file).
  const double want =
      static_cast<double>((uint64_t{0xe169c58du} << 32 | 0x6627e8d5u) >> 11) / 9007199254740992.0;
  EXPECT_EQ(PhiloxUniform(0, 0), want);
  EXPECT_NE(PhiloxUniform(0, 1), PhiloxUniform(1, 0));
}

class ScoreTest : public ::testing::TestWithParam<const Tier*> {};

TEST_P(ScoreTest, EqualsTheDoubleLoop) {
  std::mt19937 rng(7);
  TestStream stream(2);
  for (int V : {1, 6, 259, 65536}) {
    const int n = 6;
    Floats logits = RandomFloats(n * V, rng, 4.0f), want(n), got(n);
    std::vector<int32_t> target(n);
    for (int i = 0; i < n; ++i) target[i] = static_cast<int32_t>(rng() % V);
    target[1] = static_cast<int32_t>(std::max_element(&logits[V], &logits[V] + V) - &logits[V]);
    std::vector<uint8_t> want_greedy(n, 9), got_greedy(n, 9);
    ScoreParams p;
    p.logits = logits.get();
    p.n = n;
    p.V = V;
    p.target = target.data();
    p.logprob = want.get();
    p.greedy = want_greedy.data();
    plain::Score<double>(p);
    p.logprob = got.get();
    p.greedy = got_greedy.data();
    GetParam()->ops().score(p, stream);
    ExpectClose(got, want, 1e-6, "V " + std::to_string(V));
    EXPECT_EQ(got_greedy, want_greedy);
    EXPECT_EQ(got_greedy[1], 1);
    logits[2 * V + V / 2] = NAN;
    GetParam()->ops().score(p, stream);
    EXPECT_TRUE(std::isnan(got[2]));
    EXPECT_EQ(got_greedy[2], 0);
  }
}

std::string TierName(const ::testing::TestParamInfo<const Tier*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Tiers, ScoreTest, ::testing::ValuesIn(MachineTiers()), TierName);

}  // namespace
}  // namespace skein::kernels
