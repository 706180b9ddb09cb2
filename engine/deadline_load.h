#pragma once
// How much work waits with a deadline before a given one: requests and their prompt tokens, counted
// in a ring of short spans of time, so that a question costs the same however many wait. Pure; not
// thread-safe.

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace skein::engine {

class DeadlineLoad {
 public:
  struct Ahead {
    int64_t requests = 0, tokens = 0;
  };

  // Returns the place to give back to Remove; kNowhere for a deadline beyond the window, which is
  // not counted.
  int32_t Add(absl::Time now, absl::Time deadline, int64_t tokens);
  void Remove(int32_t place, int64_t tokens);
  // What has to be served before a request with this deadline; never more than that. Of deadlines
  // in one span none counts as earlier.
  Ahead Before(absl::Time now, absl::Time deadline) const;

  static constexpr int32_t kNowhere = -1;
  static constexpr absl::Duration kSpan = absl::Milliseconds(64);

 private:
  static constexpr int64_t kPlaces = 1024;
  // The last places are left empty: what is overdue and not removed yet lies there.
  static constexpr int64_t kWindow = kPlaces - 64;

  std::array<Ahead, kPlaces> places_{};
};

}  // namespace skein::engine
