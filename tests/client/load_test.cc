// The pure parts of `skein load`: histogram, distributions, plans, arrivals, timers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <fstream>
#include <thread>

#include "client/load_distribution.h"
#include "client/load_histogram.h"
#include "client/load_plan.h"
#include "client/load_timers.h"
#include "tests/temp_folder.h"

namespace skein::client {
namespace {

using std::chrono::nanoseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// ---- histogram

TEST(LatencyHistogramTest, QuantilesAreThoseOfTheSortedValues) {
  LatencyHistogram histogram;
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> draw(std::log(2e6), 2.5);  // 2 ms, from 1 ns to minutes
  std::vector<int64_t> values(20001);
  double sum = 0;
  for (int64_t& value : values) {
    value = static_cast<int64_t>(draw(random));
    sum += static_cast<double>(value) * 1e-9;
    histogram.Record(nanoseconds(value));
  }
  std::sort(values.begin(), values.end());
  for (const double share : {0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const auto rank = static_cast<size_t>(std::max(1.0, std::ceil(share * 20001))) - 1;
    const double exact = static_cast<double>(values[rank]) * 1e-9;
    EXPECT_GE(histogram.QuantileSeconds(share), exact * (1 - 1e-12)) << share;
    EXPECT_LE(histogram.QuantileSeconds(share), exact * (1 + 1.0 / LatencyHistogram::kParts))
        << share;
  }
  EXPECT_EQ(histogram.count(), 20001);
  EXPECT_NEAR(histogram.MeanSeconds(), sum / 20001, 1e-9 * sum);
  EXPECT_EQ(histogram.MaxSeconds(), static_cast<double>(values.back()) * 1e-9);
}

TEST(LatencyHistogramTest, EveryValueIsWithinItsBucketsWidth) {
  for (int64_t value = 1; value < int64_t{8'000'000'000'000}; value += value / 7 + 1) {
    LatencyHistogram histogram;
    histogram.Record(nanoseconds(value - 1));
    histogram.Record(nanoseconds(value));
    const double lower = histogram.QuantileSeconds(0.5) * 1e9;
    EXPECT_GE(lower, static_cast<double>(value - 1) * (1 - 1e-12));
    EXPECT_LE(lower, static_cast<double>(value) * (1 + 1.0 / LatencyHistogram::kParts));
    EXPECT_DOUBLE_EQ(histogram.QuantileSeconds(1) * 1e9, static_cast<double>(value));
  }
}

TEST(LatencyHistogramTest, EndsOfTheRange) {
  LatencyHistogram histogram;
  EXPECT_EQ(histogram.QuantileSeconds(0.5), 0);
  EXPECT_EQ(histogram.MeanSeconds(), 0);
  histogram.Record(nanoseconds(-5));
  EXPECT_EQ(histogram.QuantileSeconds(1), 0);
  histogram.Record(nanoseconds::max());
  EXPECT_GT(histogram.QuantileSeconds(1), 8000);
  EXPECT_EQ(histogram.count(), 2);
}

TEST(LatencyHistogramTest, ThreadsLoseNothing) {
  LatencyHistogram histogram;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&histogram, t] {
      for (int i = 0; i < 10000; ++i) histogram.Record(nanoseconds(1000 * t + i % 10));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(histogram.count(), 40000);
  EXPECT_NEAR(histogram.QuantileSeconds(0.25) * 1e9, 9, 1);
}

// ---- distributions

Distribution Parsed(const std::string& text) {
  auto distribution = Distribution::Parse(text);
  EXPECT_TRUE(distribution.ok()) << distribution.status();
  return *std::move(distribution);
}

TEST(DistributionTest, FixedAndUniform) {
  std::mt19937_64 random(1);
  EXPECT_EQ(Parsed("64").DrawInt(&random, 0), 64);
  EXPECT_TRUE(Parsed("1").IsAlways(1));
  EXPECT_FALSE(Parsed("uniform:1,1").IsAlways(1));
  EXPECT_EQ(Parsed("0").DrawInt(&random, 1), 1);
  const Distribution uniform = Parsed("uniform:2,5");
  std::vector<int> seen(6, 0);
  for (int i = 0; i < 8000; ++i) ++seen.at(uniform.DrawInt(&random, 0));
  EXPECT_EQ(seen[0] + seen[1], 0);
  for (int value = 2; value <= 5; ++value) EXPECT_NEAR(seen[value], 2000, 200) << value;
}

TEST(DistributionTest, Lognormal) {
  std::mt19937_64 random(2);
  const Distribution lognormal = Parsed("lognormal:200,0.8,1000");
  std::vector<double> values(9999);
  for (double& value : values) value = lognormal.Draw(&random);
  std::sort(values.begin(), values.end());
  EXPECT_NEAR(values[5000], 200, 10);
  EXPECT_NEAR(std::log(values[8413] / 200), 0.8, 0.05);  // one sigma above the median
  EXPECT_EQ(values.back(), 1000);
}

TEST(DistributionTest, Samples) {
  const std::string path = TempFolder() + "/lengths";
  std::ofstream(path) << "3 5\n\t8";
  const Distribution samples = Parsed("file:" + path);
  std::mt19937_64 random(3);
  std::map<int64_t, int> seen;
  for (int i = 0; i < 3000; ++i) ++seen[samples.DrawInt(&random, 0)];
  ASSERT_EQ(seen.size(), 3);
  for (const int64_t value : {3, 5, 8}) EXPECT_NEAR(seen[value], 1000, 150) << value;
}

TEST(DistributionTest, SaysWhatIsWrong) {
  const std::string path = TempFolder() + "/no_lengths";
  std::ofstream(path) << " \n";
  const std::pair<std::string, std::string> cases[] = {{"", "neither"},
                                                       {"abc", "neither"},
                                                       {"-1", "neither"},
                                                       {"nan", "neither"},
                                                       {"uniform:5", "LEAST,MOST"},
                                                       {"uniform:5,2", "LEAST,MOST"},
                                                       {"uniform:a,b", "'a'"},
                                                       {"lognormal:0,1", "MEDIAN"},
                                                       {"lognormal:5", "MEDIAN"},
                                                       {"file:/none", "/none"},
                                                       {"file:" + path, "no numbers"}};
  for (const auto& [text, words] : cases) {
    const auto parsed = Distribution::Parse(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_THAT(std::string(parsed.status().message()), HasSubstr(words)) << text;
  }
}

// ---- plans

TEST(SessionPlanTest, TheSeedAndTheNumberDecide) {
  LoadOptions options;
  options.prompt = Parsed("uniform:1,1000");
  options.output = Parsed("lognormal:100,1");
  options.turns = Parsed("uniform:1,9");
  options.cancel = 0.3;
  const std::vector<int32_t> text = {1, 2, 3, 4, 5, 6, 7};
  const auto draw = [&](int64_t number) {
    SessionPlan plan(options, number);
    std::vector<int64_t> out = {plan.turns()};
    for (int turn = 0; turn < 5; ++turn) {
      const RequestPlan request = plan.NextRequest();
      v1::TokenIds ids;
      plan.AddPrompt(text, request.prompt, &ids);
      EXPECT_EQ(ids.ids_size(), request.prompt);
      for (int i = 1; i < ids.ids_size(); ++i)
        EXPECT_EQ(ids.ids(i), ids.ids(i - 1) % 7 + 1);  // a piece of the text, around its end
      out.insert(out.end(), {request.prompt, request.output, static_cast<int64_t>(request.end),
                             request.end_after, ids.ids(0)});
    }
    return out;
  };
  EXPECT_EQ(draw(5), draw(5));
  EXPECT_NE(draw(5), draw(6));
  const auto before = draw(5);
  options.seed = 2;
  EXPECT_NE(draw(5), before);
}

TEST(SessionPlanTest, SharesOfBadManners) {
  LoadOptions options;
  options.cancel = 0.2;
  options.hang_up = 0.1;
  options.slow = 0.5;
  int cancels = 0, hang_ups = 0, slow = 0;
  SessionPlan plan(options, 0);
  EXPECT_FALSE(plan.in_conversation());
  for (int i = 0; i < 10000; ++i) {
    const RequestPlan request = plan.NextRequest();
    cancels += request.end == RequestPlan::End::kCancel;
    hang_ups += request.end == RequestPlan::End::kHangUp;
    slow += request.slow;
    EXPECT_LE(request.end_after, request.output);
  }
  EXPECT_NEAR(cancels, 2000, 150);
  EXPECT_NEAR(hang_ups, 1000, 120);
  EXPECT_NEAR(slow, 5000, 200);
}

TEST(PoissonArrivalsTest, GapsAreExponential) {
  PoissonArrivals arrivals(50, 11);
  double last = 0, sum = 0, squares = 0;
  constexpr int kN = 20000;
  for (int i = 0; i < kN; ++i) {
    const double at = arrivals.Next();
    ASSERT_GE(at, last);
    sum += at - last;
    squares += (at - last) * (at - last);
    last = at;
  }
  EXPECT_NEAR(sum / kN, 0.02, 0.0005);                       // the mean
  EXPECT_NEAR(squares / kN - 0.02 * 0.02, 0.0004, 0.00003);  // and the variance: both 1 / rate
}

// ---- timers

TEST(TimersTest, RunsInOrderOfTime) {
  std::vector<int> ran;
  std::mutex mu;
  std::condition_variable changed;
  Timers timers;
  const auto add = [&](int n) {
    return [&, n] {
      const std::lock_guard lock(mu);
      ran.push_back(n);
      changed.notify_all();
    };
  };
  const Timers::Time now = Timers::Clock::now();
  timers.At(now + std::chrono::milliseconds(60), add(3));
  timers.At(now + std::chrono::milliseconds(20), add(1));
  timers.At(now + std::chrono::milliseconds(20), add(2));
  timers.At(now + std::chrono::hours(1), add(4));
  timers.Soon(add(0));
  std::unique_lock lock(mu);
  changed.wait_for(lock, std::chrono::seconds(60), [&] { return ran.size() >= 4; });
  EXPECT_THAT(ran, ElementsAre(0, 1, 2, 3));
  EXPECT_GE(Timers::Clock::now(), now + std::chrono::milliseconds(60));
}

}  // namespace
}  // namespace skein::client
