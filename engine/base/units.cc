#include "engine/base/units.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"

namespace skein::base {
namespace {

struct ByteUnit {
  absl::string_view name;
  int64_t bytes;
};
constexpr ByteUnit kByteUnits[] = {{"TiB", int64_t{1} << 40},
                                   {"GiB", int64_t{1} << 30},
                                   {"MiB", int64_t{1} << 20},
                                   {"KiB", int64_t{1} << 10},
                                   {"TB", 1000000000000},
                                   {"GB", 1000000000},
                                   {"MB", 1000000},
                                   {"kB", 1000},
                                   {"B", 1}};

// value * multiply / divide: both exact for a value that a unit of this table printed.
struct TimeUnit {
  absl::string_view name;
  double multiply;
  double divide;
};
constexpr TimeUnit kTimeUnits[] = {{"ms", 1, 1000}, {"us", 1, 1000000}, {"s", 1, 1},
                                   {"m", 60, 1},    {"h", 3600, 1},     {"d", 86400, 1}};

absl::Status Expected(absl::string_view what, absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat("expected ", what, ", found '", text, "'"));
}

template <typename T>
bool ParseWhole(absl::string_view text, T* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

absl::StatusOr<int64_t> ParseInteger(absl::string_view text) {
  int64_t value = 0;
  if (!ParseWhole(text, &value)) return Expected("an integer", text);
  return value;
}

absl::StatusOr<double> ParseNumber(absl::string_view text) {
  double value = 0;
  if (!ParseWhole(text, &value) || !std::isfinite(value)) return Expected("a number", text);
  return value;
}

absl::StatusOr<int64_t> ParseBytes(absl::string_view text) {
  int64_t unit = 1;
  absl::string_view digits = text;
  for (const ByteUnit& candidate : kByteUnits) {
    if (absl::ConsumeSuffix(&digits, candidate.name)) {
      unit = candidate.bytes;
      break;
    }
  }
  digits = absl::StripSuffix(digits, " ");
  int64_t whole = 0;
  if (ParseWhole(digits, &whole)) {
    int64_t bytes = 0;
    if (__builtin_mul_overflow(whole, unit, &bytes)) return Expected("a size below 8 EiB", text);
    return bytes;
  }
  double value = 0;
  if (!ParseWhole(digits, &value) || !std::isfinite(value))
    return Expected("a size like 512MiB, 2GiB or 1000000", text);
  value *= static_cast<double>(unit);
  if (std::abs(value) >= 9.2e18) return Expected("a size below 8 EiB", text);
  return static_cast<int64_t>(std::llround(value));
}

absl::StatusOr<double> ParseSeconds(absl::string_view text) {
  constexpr absl::string_view kWanted = "a duration with a unit, like 30s, 1500ms or 2m";
  for (const TimeUnit& unit : kTimeUnits) {
    absl::string_view digits = text;
    if (!absl::ConsumeSuffix(&digits, unit.name)) continue;
    double value = 0;
    if (!ParseWhole(absl::StripSuffix(digits, " "), &value)) return Expected(kWanted, text);
    value = value * unit.multiply / unit.divide;
    if (!std::isfinite(value)) return Expected(kWanted, text);
    return value;
  }
  double value = 0;
  if (!ParseWhole(text, &value) || value != 0) return Expected(kWanted, text);
  return 0.0;
}

std::string FormatNumber(double value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer), value);
  SKEIN_CHECK(error == std::errc());
  return std::string(buffer, end);
}

std::string FormatBytes(int64_t bytes) {
  for (const ByteUnit& unit : kByteUnits) {
    const bool binary = absl::StrContains(unit.name, "i");
    if (binary && bytes != 0 && bytes % unit.bytes == 0)
      return absl::StrCat(bytes / unit.bytes, unit.name);
  }
  return absl::StrCat(bytes);
}

std::string FormatSeconds(double seconds) {
  if (seconds == 0) return "0s";
  const double milliseconds = seconds * 1000;
  if (std::abs(seconds) < 1 && milliseconds / 1000 == seconds)
    return FormatNumber(milliseconds) + "ms";
  return FormatNumber(seconds) + "s";
}

}  // namespace skein::base
