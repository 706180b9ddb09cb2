#pragma once
// The W3C trace context that a client sends as metadata `traceparent`, for the log.

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace skein::server {

struct TraceContext {
  std::string trace_id;   // 32 hexadecimal digits
  std::string parent_id;  // 16
};

// None when the value is not one of the recommendation's: it is then as if there were none.
std::optional<TraceContext> ParseTraceparent(absl::string_view value);

}  // namespace skein::server
