#include "engine/deadline_load.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace skein::engine {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }

TEST(DeadlineLoad, CountsWhatIsDueBefore) {
  DeadlineLoad load;
  const int32_t a = load.Add(At(0), At(1), 100);
  const int32_t b = load.Add(At(0), At(2), 10);
  EXPECT_EQ(load.Add(At(0), absl::InfiniteFuture(), 1), DeadlineLoad::kNowhere);
  EXPECT_EQ(load.Before(At(0), At(1.5)).tokens, 100);
  EXPECT_EQ(load.Before(At(0), At(3)).tokens, 110);
  EXPECT_EQ(load.Before(At(0), At(3)).requests, 2);
  EXPECT_EQ(load.Before(At(0), absl::InfiniteFuture()).requests, 2);
  EXPECT_EQ(load.Before(At(0), At(1)).requests, 0);  // due together
  load.Remove(a, 100);
  EXPECT_EQ(load.Before(At(0), At(3)).tokens, 10);
  load.Remove(b, 10);
  load.Remove(DeadlineLoad::kNowhere, 1);
  EXPECT_EQ(load.Before(At(0), At(3)).requests, 0);
}

TEST(DeadlineLoad, NeverMoreThanThereIs) {
  std::mt19937 random(3);
  DeadlineLoad load;
  struct Entry {
    absl::Time deadline;
    int64_t tokens;
    int32_t place;
  };
  std::vector<Entry> entries;
  for (double now = 0; now < 400; now += 0.05) {
    const absl::Time deadline = At(now + random() % 100000 / 1000.0);
    const int64_t tokens = random() % 1000;
    entries.push_back({deadline, tokens, load.Add(At(now), deadline, tokens)});
    std::erase_if(entries, [&](const Entry& e) {
      const bool gone = e.deadline <= At(now) || random() % 50 == 0;
      if (gone) load.Remove(e.place, e.tokens);
      return gone;
    });
    const absl::Time asked = At(now + random() % 80000 / 1000.0);
    int64_t most = 0, least = 0;
    for (const Entry& e : entries) {
      if (e.deadline <= asked) most += e.tokens;
      if (e.deadline <= asked - DeadlineLoad::kSpan && e.place != DeadlineLoad::kNowhere &&
          e.deadline - At(now) < absl::Seconds(60)) {
        least += e.tokens;
      }
    }
    const DeadlineLoad::Ahead ahead = load.Before(At(now), asked);
    ASSERT_LE(ahead.tokens, most);
    ASSERT_GE(ahead.tokens, least);
  }
}

}  // namespace
}  // namespace skein::engine
