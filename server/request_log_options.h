#pragma once
// How much is remembered of requests.

#include <cstdint>

#include "absl/time/time.h"

namespace skein::server {

// Of one request; those in force when it came.
struct RecordLimits {
  int64_t bytes = 1 << 20;                        // tokens kept of one request
  int64_t reader_tokens = 1024;                   // a reader that is this far behind is slow
  absl::Duration reader_age = absl::Seconds(30);  // slow for longer: it loses its stream
};

struct RequestLogOptions {
  int64_t kept = 1024;                          // ended requests of one tenant
  int64_t kept_bytes = 64 << 20;                // their tokens, all tenants together
  absl::Duration kept_age = absl::Minutes(10);  // since they ended
};

}  // namespace skein::server
