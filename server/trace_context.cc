#include "server/trace_context.h"

#include <algorithm>

namespace skein::server {
namespace {

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) {
  return text.find_first_not_of('0') == absl::string_view::npos;
}

}  // namespace

// version-traceid-parentid-flags, 2-32-16-2 digits; later versions may add fields behind.
std::optional<TraceContext> ParseTraceparent(absl::string_view value) {
  constexpr size_t kSize = 55;
  if (value.size() < kSize || value[2] != '-' || value[35] != '-' || value[52] != '-') {
    return std::nullopt;
  }
  const absl::string_view version = value.substr(0, 2), trace = value.substr(3, 32),
                          parent = value.substr(36, 16), flags = value.substr(53, 2);
  if (!IsHex(version) || !IsHex(trace) || !IsHex(parent) || !IsHex(flags)) return std::nullopt;
  if (version == "ff" || IsZero(trace) || IsZero(parent)) return std::nullopt;
  if (version == "00" ? value.size() != kSize : value.size() > kSize && value[kSize] != '-') {
    return std::nullopt;
  }
  return TraceContext{std::string(trace), std::string(parent)};
}

}  // namespace skein::server
