#include "engine/base/parallel.h"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace skein::base {

void ParallelFor(int threads, int64_t n, absl::FunctionRef<void(int64_t i)> body) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) body(i);
  };
  std::vector<std::thread> others;
  try {
    for (int64_t i = 1; i < std::min<int64_t>(threads, n); ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no thread left: those that there are do all of it.
  }
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace skein::base
