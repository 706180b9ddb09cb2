#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace skein::kernels {
namespace {

// Every index exactly once, ranges cut at multiples of the grain.
void CheckCover(ThreadPool& pool, int64_t n, int64_t grain) {
  std::vector<int> seen(n, 0);
  std::atomic<int> bad_cuts{0};
  pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
    if (begin % grain != 0 || (end % grain != 0 && end != n) || begin >= end) bad_cuts.fetch_add(1);
    for (int64_t i = begin; i < end; ++i) ++seen[i];
  });
  EXPECT_EQ(bad_cuts.load(), 0) << n << " by " << grain;
  for (int64_t i = 0; i < n; ++i) ASSERT_EQ(seen[i], 1) << i << " of " << n << " by " << grain;
}

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
      for (int64_t grain : {1, 3, 16, 2000}) CheckCover(pool, n, grain);
    }
  }
}

TEST(ThreadPool, ManySmallRegionsSeeOneAnothersWrites) {
  ThreadPool pool(4);
  std::vector<int64_t> values(64, 0);
  constexpr int kRounds = 20000;
  for (int round = 0; round < kRounds; ++round) {
    // Reads what another thread may have written in the round before.
    pool.ParallelFor(64, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) ++values[(i + round) % 64];
    });
  }
  for (int64_t value : values) EXPECT_EQ(value, kRounds);
}

TEST(ThreadPool, WorksAfterTheWorkersHaveGoneToSleep) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::microseconds(300 * (i % 3)));
    CheckCover(pool, 100, 1);
  }
}

TEST(ThreadPool, WaitsForAWorkerThatIsSlow) {
  ThreadPool pool(2);
  for (int i = 0; i < 5; ++i) {
    std::atomic<int> done{0};
    pool.ParallelFor(2, 1, [&](int64_t begin, int64_t end) {
      if (begin > 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
      done.fetch_add(static_cast<int>(end - begin));
    });
    EXPECT_EQ(done.load(), 2);
  }
}

// The worker does not come back from its first chunk before all other chunks are done: it was put
// aside by the system, and the caller has taken them.
TEST(ThreadPool, AWorkerThatStandsStillHoldsUpOneChunk) {
  ThreadPool pool(2);
  const std::thread::id caller = std::this_thread::get_id();
  const auto wait_for = [deadline = std::chrono::steady_clock::now() +
                                    std::chrono::minutes(1)](const auto& condition) {
    while (!condition()) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      std::this_thread::yield();
    }
  };
  for (int i = 0; i < 20; ++i) {
    constexpr int64_t kItems = 64;
    std::atomic<int64_t> done{0}, held{0};
    pool.ParallelFor(kItems, 1, [&](int64_t begin, int64_t end) {
      if (std::this_thread::get_id() != caller) {
        held = end - begin;
        wait_for([&] { return done == kItems - held; });
      } else {
        wait_for([&] { return held > 0; });
        done += end - begin;
      }
    });
    EXPECT_LT(held, kItems / 4);
  }
}

TEST(ThreadPool, TwoCallersAtATime) {
  ThreadPool pool(3);
  std::vector<std::thread> callers;
  for (int c = 0; c < 2; ++c) {
    callers.emplace_back([&pool] {
      for (int i = 0; i < 500; ++i) {
        std::atomic<int64_t> sum{0};
        pool.ParallelFor(100, 1, [&](int64_t begin, int64_t end) {
          for (int64_t k = begin; k < end; ++k) sum.fetch_add(k);
        });
        ASSERT_EQ(sum.load(), 4950);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(ThreadPool, StartsAndStopsWithoutWork) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

}  // namespace
}  // namespace skein::kernels
