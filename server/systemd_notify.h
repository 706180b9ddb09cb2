#pragma once

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace skein::server {

// Tells systemd ("READY=1", "STOPPING=1") when it started us with Type=notify; else does nothing.
void NotifySystemd(absl::string_view state);

// Asks systemd to wait so much longer before it takes a start or a stop for one that hangs; said
// while there is progress, whatever the unit's TimeoutStartSec and TimeoutStopSec are. May be
// called often: it is said once a second. Thread-safe.
void AskForMoreTime(absl::Duration more);

// Says that the process is well, when systemd asked to be told (WatchdogSec).
void NotifyWatchdog();

}  // namespace skein::server
