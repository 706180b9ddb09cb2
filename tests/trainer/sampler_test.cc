#include "trainer/sampler.h"

#include <gtest/gtest.h>

#include <set>

#include "trainer/schedule.h"

namespace skein::trainer {
namespace {

TEST(MagicPrime, PublishedValues) {  // of minipile, 1,498,226,207 tokens
  EXPECT_EQ(MagicPrime(1498226207, 512), 2926181);
  EXPECT_EQ(MagicPrime(1498226207, 4096), 365759);
}

TEST(MagicPrime, VisitsEveryWindowOnce) {
  const int64_t tokens = 30001, context = 10;
  const auto sampler = Sampler::Create("magic-prime", tokens, context, 1);
  ASSERT_TRUE(sampler.ok()) << sampler.status();
  std::set<int64_t> seen;
  for (int64_t i = 0; i < sampler->windows(); ++i) {
    const int64_t offset = sampler->Offset(i);
    EXPECT_EQ(offset % context, 0);
    EXPECT_LE(offset + context + 1, tokens);
    seen.insert(offset);
  }
  EXPECT_EQ(static_cast<int64_t>(seen.size()), sampler->windows());
  EXPECT_EQ(sampler->Offset(sampler->windows()), sampler->Offset(0));  // the next round
}

TEST(MagicPrime, IsRefusedWhenItCoversTooLittle) {  // 29 of 39 windows
  const auto sampler = Sampler::Create("magic-prime", 20000, 512, 1);
  EXPECT_EQ(sampler.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MagicPrime, IsTheDefaultForMuchData) {
  EXPECT_TRUE(Sampler::Create("auto", int64_t{1} << 31, 512, 1)->magic_prime());
  EXPECT_FALSE(Sampler::Create("auto", 1 << 20, 512, 1)->magic_prime());
}

TEST(Permutation, EachEpochVisitsEveryWindowOnceInAnOrderOfItsOwn) {
  const int64_t tokens = 1003, context = 10;
  const auto sampler = Sampler::Create("permutation", tokens, context, 5);
  ASSERT_TRUE(sampler.ok());
  std::vector<int64_t> first, second;
  for (int64_t i = 0; i < 2 * sampler->windows(); ++i) {
    const int64_t offset = sampler->Offset(i);
    EXPECT_GE(offset, 0);
    EXPECT_LE(offset + context + 1, tokens);
    (i < sampler->windows() ? first : second).push_back(offset / context);
  }
  EXPECT_NE(first, second);
  for (const auto& epoch : {first, second}) {
    EXPECT_EQ(std::set<int64_t>(epoch.begin(), epoch.end()).size(), epoch.size());
  }
}

TEST(Permutation, DependsOnTheSeedAlone) {
  const auto a = Sampler::Create("permutation", 100000, 16, 1),
             b = Sampler::Create("permutation", 100000, 16, 1);
  const auto c = Sampler::Create("permutation", 100000, 16, 2);
  int same = 0;
  for (int64_t i = 0; i < 100; ++i) {
    EXPECT_EQ(a->Offset(i), b->Offset(i));
    same += a->Offset(i) == c->Offset(i);
  }
  EXPECT_LT(same, 10);
}

TEST(Permutation, OneWindowAndTooFewTokens) {
  const auto sampler = Sampler::Create("permutation", 11, 10, 1);
  ASSERT_TRUE(sampler.ok());
  EXPECT_EQ(sampler->Offset(0), 0);
  EXPECT_EQ(sampler->Offset(7), 0);
  EXPECT_FALSE(Sampler::Create("permutation", 10, 10, 1).ok());
}

TEST(Permute, IsABijectionForAnySize) {
  for (uint64_t n : {1, 2, 3, 7, 64, 65, 1000}) {
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < n; ++i) seen.insert(Permute(i, n, 99));
    EXPECT_EQ(seen.size(), n);
    EXPECT_LT(*seen.rbegin(), n);
  }
}

TEST(Schedule, WarmUpAndCosine) {
  const Schedule s{6e-4, 6e-5, 10, 110};
  EXPECT_DOUBLE_EQ(s.At(0), 6e-4 * 0.01);
  EXPECT_DOUBLE_EQ(s.At(5), 6e-4 * (0.01 + 0.99 * 0.5));
  EXPECT_DOUBLE_EQ(s.At(10), 6e-4);
  EXPECT_NEAR(s.At(60), (6e-4 + 6e-5) / 2, 1e-12);
  EXPECT_NEAR(s.At(110), 6e-5, 1e-12);
  EXPECT_NEAR(s.At(1000), 6e-5, 1e-12);
}

}  // namespace
}  // namespace skein::trainer
