#pragma once
// Numbers as people write them in configs. All parsers take the whole text or nothing; errors say
// what was expected.

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::base {

absl::StatusOr<int64_t> ParseInteger(absl::string_view text);
// Finite numbers only.
absl::StatusOr<double> ParseNumber(absl::string_view text);
// "1000000", "64KiB", "1.5GiB", "2GB" (decimal); B KiB MiB GiB TiB kB MB GB TB.
absl::StatusOr<int64_t> ParseBytes(absl::string_view text);
// "30s", "1500ms", "20us", "2m", "1h", "7d"; a bare number only when it is 0.
absl::StatusOr<double> ParseSeconds(absl::string_view text);

// The shortest text that the parser above reads back to the same value.
std::string FormatNumber(double value);
std::string FormatBytes(int64_t bytes);
std::string FormatSeconds(double seconds);

}  // namespace skein::base
