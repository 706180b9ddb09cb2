#pragma once

#include "absl/strings/string_view.h"

namespace skein::server {

// Tells systemd ("READY=1", "STOPPING=1") when it started us with Type=notify; else does nothing.
void NotifySystemd(absl::string_view state);

// Says that the process is well, when systemd asked to be told (WatchdogSec).
void NotifyWatchdog();

}  // namespace skein::server
