#include "engine/base/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

namespace skein::base {
namespace {

TEST(ParallelFor, DoesEverythingOnce) {
  for (const int threads : {1, 2, 7}) {
    for (const int64_t n : {0, 1, 5, 1000}) {
      std::vector<std::atomic<int>> done(n);
      ParallelFor(threads, n, [&](int64_t i) { ++done[i]; });
      for (int64_t i = 0; i < n; ++i) ASSERT_EQ(done[i], 1) << i << " of " << n;
    }
  }
}

}  // namespace
}  // namespace skein::base
