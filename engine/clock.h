#pragma once
// Time that never jumps. Inside the engine every absl::Time is monotonic; a deadline of the wall
// clock is converted once, when a request is submitted.

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace skein::engine {

inline absl::Time MonotonicNow() {
  return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
}

inline absl::Time MonotonicFromWall(absl::Time wall) {
  if (wall == absl::InfiniteFuture()) return wall;
  return MonotonicNow() + (wall - absl::Now());
}

}  // namespace skein::engine
