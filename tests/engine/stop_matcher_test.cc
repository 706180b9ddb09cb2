#include "engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace skein::engine {
namespace {

// The specification: at each byte, does any string end here (the longest wins), and what is the
// longest tail that begins some string.
struct Naive {
  explicit Naive(const std::vector<std::string>& s) : strings(s) {}
  std::optional<StopMatcher::Match> Push(char c) {
    text += c;
    std::optional<StopMatcher::Match> best;
    for (size_t i = 0; i < strings.size(); ++i) {
      const size_t n = strings[i].size();
      if (text.size() < n || text.compare(text.size() - n, n, strings[i]) != 0) continue;
      const int64_t begin = static_cast<int64_t>(text.size() - n);
      if (!best.has_value() || begin < best->begin) best = {begin, static_cast<int32_t>(i)};
    }
    return best;
  }
  int64_t PartialBegin() const {
    for (size_t begin = 0; begin < text.size(); ++begin) {
      for (const std::string& s : strings) {
        const size_t n = text.size() - begin;
        if (n < s.size() && s.compare(0, n, text, begin, n) == 0)
          return static_cast<int64_t>(begin);
      }
    }
    return static_cast<int64_t>(text.size());
  }
  std::vector<std::string> strings;
  std::string text;
};

TEST(StopMatcher, AgreesWithASearchOverRandomStrings) {
  std::mt19937 random(1);
  int matches = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> strings(1 + random() % 4);
    for (std::string& s : strings) {
      for (size_t n = 1 + random() % 5; s.size() < n;) s += static_cast<char>('a' + random() % 2);
    }
    StopMatcher matcher(strings);
    Naive naive(strings);
    for (int i = 0; i < 30; ++i) {
      const char c = static_cast<char>('a' + random() % 3);
      const auto expected = naive.Push(c);
      const auto got = matcher.Push(absl::string_view(&c, 1));
      ASSERT_EQ(got.has_value(), expected.has_value());
      if (got.has_value()) {
        EXPECT_EQ(got->begin, expected->begin);
        EXPECT_EQ(strings[got->string], strings[expected->string]);
        ++matches;
        break;
      }
      ASSERT_EQ(matcher.partial_begin(), naive.PartialBegin());
    }
  }
  EXPECT_GT(matches, 1000);
}

TEST(StopMatcher, StopsAtTheFirstMatchInsideABlock) {
  StopMatcher matcher({"cd", "f"});
  const auto match = matcher.Push("abcdef");
  ASSERT_TRUE(match.has_value());
  EXPECT_EQ(match->begin, 2);
  EXPECT_EQ(matcher.position(), 4);
}

TEST(StopMatcher, AnyByte) {
  StopMatcher matcher({std::string("\0\xff", 2)});
  EXPECT_FALSE(matcher.Push(absl::string_view("\xff\0", 2)).has_value());
  EXPECT_EQ(matcher.partial_begin(), 1);
  EXPECT_TRUE(matcher.Push("\xff").has_value());
}

}  // namespace
}  // namespace skein::engine
