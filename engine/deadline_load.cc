#include "engine/deadline_load.h"

#include <algorithm>

namespace skein::engine {
namespace {

int64_t SpanOf(absl::Time time) {
  return absl::ToUnixMillis(time) / absl::ToInt64Milliseconds(DeadlineLoad::kSpan);
}

}  // namespace

int32_t DeadlineLoad::Add(absl::Time now, absl::Time deadline, int64_t tokens) {
  if (deadline == absl::InfiniteFuture()) return kNowhere;
  const int64_t span = SpanOf(deadline);
  if (span - SpanOf(now) >= kWindow) return kNowhere;
  const int32_t place = static_cast<int32_t>(span % kPlaces);
  places_[place].requests += 1;
  places_[place].tokens += tokens;
  return place;
}

void DeadlineLoad::Remove(int32_t place, int64_t tokens) {
  if (place == kNowhere) return;
  places_[place].requests -= 1;
  places_[place].tokens -= tokens;
}

DeadlineLoad::Ahead DeadlineLoad::Before(absl::Time now, absl::Time deadline) const {
  Ahead ahead;
  const int64_t first = SpanOf(now);
  const int64_t end = deadline == absl::InfiniteFuture()
                          ? first + kWindow
                          : std::min(SpanOf(deadline), first + kWindow);
  for (int64_t span = first; span < end; ++span) {
    ahead.requests += places_[span % kPlaces].requests;
    ahead.tokens += places_[span % kPlaces].tokens;
  }
  return ahead;
}

}  // namespace skein::engine
