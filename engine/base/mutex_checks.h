#pragma once
// Debian's abseil is built with its checks: at each lock it looks for cycles of locks, under one
// global lock, and keeps half a kilobyte for each mutex that lives. Good for tests, not for
// service.

#include "absl/synchronization/mutex.h"

namespace skein::base {

// At the beginning of main(). Debug builds keep the checks.
inline void LeaveOutMutexChecks() {
#ifdef NDEBUG
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
#endif
}

}  // namespace skein::base
