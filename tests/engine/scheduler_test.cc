#include "engine/scheduler.h"

#include <gmock/gmock.h>

namespace skein::engine {

bool operator==(const StepShare& a, const StepShare& b) {
  return a.row == b.row && a.tokens == b.tokens;
}
void PrintTo(const StepShare& share, std::ostream* out) {
  *out << "row " << share.row << ": " << share.tokens;
}

namespace {

using ::testing::ElementsAreArray;

constexpr RowDemand Decode() { return {1, 0, false}; }
constexpr RowDemand Prefill(int64_t tokens) { return {tokens, tokens - 1, false}; }
constexpr RowDemand TakeIn(int64_t tokens) { return {tokens, tokens, false}; }
constexpr RowDemand Blocked(RowDemand row) { return {row.remaining, row.unscored, true}; }
constexpr RowDemand Scored(int64_t prompt, int64_t scored) {
  return {prompt + scored, prompt, false};
}

struct Case {
  const char* name;
  SchedulerOptions options;
  std::vector<RowDemand> rows;
  std::vector<StepShare> expected;
};

// Nothing learned yet: only the fixed limits count.
const SchedulerOptions kLimits = {8, 64, 32, 8, absl::Milliseconds(50)};
const Case kCases[] = {
    {"nothing", kLimits, {}, {}},
    {"idle row", kLimits, {TakeIn(0)}, {}},
    {"decodes together", kLimits, {Decode(), Decode()}, {{0, 1}, {1, 1}}},
    {"blocked rows are skipped",
     kLimits,
     {Blocked(Decode()), Decode(), Blocked(Prefill(9))},
     {{1, 1}}},
    {"prefill beside decode", kLimits, {Decode(), Prefill(10)}, {{0, 1}, {1, 10}}},
    {"a long prompt is cut", kLimits, {Prefill(100)}, {{0, 32}}},
    {"the step is full", kLimits, {Prefill(100), Prefill(100), Prefill(100)}, {{0, 32}, {1, 32}}},
    {"decodes first", kLimits, {Prefill(100), Prefill(100), Decode()}, {{0, 32}, {1, 31}, {2, 1}}},
    {"score within the logits", kLimits, {Scored(5, 20)}, {{0, 13}}},
    {"score beside decodes",
     kLimits,
     {Decode(), Scored(0, 20), Decode()},
     {{0, 1}, {1, 6}, {2, 1}}},
    {"two scores", kLimits, {Scored(3, 20), Scored(3, 20)}, {{0, 11}, {1, 3}}},
    {"taking in wants no logits",
     {8, 64, 32, 1, absl::Milliseconds(50)},
     {Prefill(4), TakeIn(6)},
     {{0, 4}, {1, 6}}},
    {"last chunk waits for logits",
     {8, 64, 32, 1, absl::Milliseconds(50)},
     {Prefill(4), Prefill(6)},
     {{0, 4}, {1, 5}}},
    {"rows of a step",
     {2, 64, 32, 8, absl::Milliseconds(50)},
     {Prefill(4), Prefill(4), Prefill(4)},
     {{0, 4}, {1, 4}}},
    {"one row always", {1, 64, 32, 1, absl::Milliseconds(50)}, {Prefill(4), Decode()}, {{1, 1}}},
};

TEST(Scheduler, Table) {
  for (const Case& c : kCases) {
    Scheduler scheduler(c.options);
    std::vector<StepShare> shares = {{99, 99}};
    scheduler.Plan(c.rows, &shares);
    EXPECT_THAT(shares, ElementsAreArray(c.expected)) << c.name;
  }
}

// Steps that cost 2 ms + 1 ms a decode + 0.5 ms a prefill token.
void Teach(Scheduler* scheduler) {
  for (int i = 0; i < 60; ++i) {
    const int decodes = i % 7, prefill = (i * 13) % 40;
    scheduler->Learn(decodes, prefill, absl::Microseconds(2000 + 1000 * decodes + 500 * prefill));
  }
}

TEST(Scheduler, LearnsWhatAStepCosts) {
  Scheduler scheduler({64, 512, 256, 64, absl::Milliseconds(50)});
  Teach(&scheduler);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(scheduler.cost().Predict(4, 30)), 21, 0.5);
  EXPECT_NEAR(absl::ToDoubleMilliseconds(scheduler.cost().Predict(0, 0)), 2, 0.5);
}

TEST(Scheduler, PrefillStaysUnderTheTarget) {
  Scheduler scheduler({64, 512, 256, 64, absl::Milliseconds(30)});
  Teach(&scheduler);
  std::vector<RowDemand> rows(8, Decode());
  rows.push_back(Prefill(400));
  std::vector<StepShare> shares;
  scheduler.Plan(rows, &shares);
  ASSERT_EQ(shares.size(), 9u);
  EXPECT_NEAR(shares.back().tokens, 40, 3);  // (30 - 2 - 8) / 0.5
  EXPECT_LE(scheduler.cost().Predict(8, shares.back().tokens), absl::Milliseconds(30));
}

TEST(Scheduler, NoiseLowersTheAimUntilNearlyAllStepsKeepTheTarget) {
  Scheduler scheduler({64, 512, 256, 64, absl::Milliseconds(30)});
  Teach(&scheduler);
  std::vector<RowDemand> rows(8, Decode());
  rows.push_back(Prefill(400));
  std::vector<StepShare> shares;
  uint32_t random = 1;
  int missed = 0;
  for (int step = 0; step < 5000; ++step) {
    scheduler.Plan(rows, &shares);
    const int32_t prefill = shares.back().tokens;
    random = random * 1664525 + 1013904223;
    const double noise = 0.8 + 0.4 * (random >> 8) / (1 << 24);  // of a machine with other work
    const auto took = noise * absl::Microseconds(2000 + 8 * 1000 + 500 * prefill);
    if (step >= 1000) missed += took > absl::Milliseconds(30);
    scheduler.Learn(8, prefill, took);
  }
  EXPECT_LT(missed, 4000 * 3 / 100);
  EXPECT_GT(shares.back().tokens, 16);
}

TEST(Scheduler, PrefillGoesOnEvenWhenTheTargetIsMissed) {
  Scheduler scheduler({64, 512, 256, 64, absl::Milliseconds(1)});
  Teach(&scheduler);
  std::vector<StepShare> shares;
  scheduler.Plan(std::vector<RowDemand>{Decode(), Prefill(400)}, &shares);
  ASSERT_EQ(shares.size(), 2u);
  EXPECT_GE(shares[1].tokens, 1);
  EXPECT_LE(shares[1].tokens, 32);
}

TEST(Scheduler, CostsAreNeverNegativeAndFollowChange) {
  StepCost cost;
  for (int i = 0; i < 100; ++i) cost.Learn(1 + i % 3, 0, absl::Milliseconds(50 - 10 * (i % 3)));
  EXPECT_GE(cost.Predict(100, 100), absl::ZeroDuration());
  for (int i = 0; i < 300; ++i) cost.Learn(1, 0, absl::Milliseconds(5));
  EXPECT_NEAR(absl::ToDoubleMilliseconds(cost.Predict(1, 0)), 5, 0.5);
}

TEST(Scheduler, DecodesTakeTurnsWhenTheyDoNotFit) {
  Scheduler scheduler({4, 64, 32, 4, absl::Milliseconds(50)});
  const std::vector<RowDemand> rows(10, Decode());
  std::vector<int> served(10, 0);
  std::vector<StepShare> shares;
  for (int step = 0; step < 100; ++step) {
    scheduler.Plan(rows, &shares);
    ASSERT_EQ(shares.size(), 4u);
    for (const StepShare& share : shares) ++served[share.row];
  }
  for (const int n : served) EXPECT_NEAR(n, 40, 4);
}

TEST(Scheduler, EveryWorkableSetMakesProgressWithinTheLimits) {
  // All small mixes of rows: something is done, and no limit is passed.
  const RowDemand kinds[] = {Decode(),  Prefill(3),   Prefill(70),
                             TakeIn(5), Scored(0, 5), Blocked(Decode())};
  for (int mix = 0; mix < 6 * 6 * 6 * 6; ++mix) {
    std::vector<RowDemand> rows;
    for (int i = 0, m = mix; i < 4; ++i, m /= 6) rows.push_back(kinds[m % 6]);
    const SchedulerOptions options = {1 + mix % 4, 1 + mix % 9, 1 + mix % 5, 1 + mix % 3,
                                      absl::Milliseconds(50)};
    Scheduler scheduler(options);
    std::vector<StepShare> shares;
    scheduler.Plan(rows, &shares);
    int64_t tokens = 0, logits = 0;
    bool workable = false;
    for (const RowDemand& row : rows) workable |= !row.blocked && row.remaining > 0;
    for (const StepShare& share : shares) {
      ASSERT_FALSE(rows[share.row].blocked);
      ASSERT_GE(share.tokens, 1);
      ASSERT_LE(share.tokens, rows[share.row].remaining);
      ASSERT_LE(share.tokens, std::max(1, options.max_prefill_chunk));
      tokens += share.tokens;
      logits += std::max<int64_t>(0, share.tokens - rows[share.row].unscored);
    }
    ASSERT_EQ(workable, !shares.empty()) << "mix " << mix;
    ASSERT_LE(static_cast<int>(shares.size()), options.max_rows);
    ASSERT_LE(tokens, options.max_step_tokens);
    ASSERT_LE(logits, options.max_logits);
  }
}

}  // namespace
}  // namespace skein::engine
