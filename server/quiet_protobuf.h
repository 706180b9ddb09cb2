#pragma once
// Protobuf complains on stderr about messages that it cannot read; clients are told that, not the
// log.

#include "google/protobuf/stubs/common.h"

// Protobuf 22 has no logging of its own any more, it uses abseil's.
#if GOOGLE_PROTOBUF_VERSION >= 4022000
#include "absl/base/log_severity.h"
#include "absl/log/globals.h"
#else
#include "google/protobuf/stubs/logging.h"
#endif

namespace skein::server {

// For the whole process, whose own log is another one (log.h).
inline void QuietProtobuf() {
#if GOOGLE_PROTOBUF_VERSION >= 4022000
  absl::SetMinLogLevel(absl::LogSeverityAtLeast::kInfinity);
#else
  google::protobuf::SetLogHandler(nullptr);
#endif
}

}  // namespace skein::server
