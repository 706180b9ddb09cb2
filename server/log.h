#pragma once
// Structured logs: one line a record on stderr, as text (`message key=value`) or JSON. Thread-safe.
// Never holds prompts or answers; values from clients are escaped, and cut where they are long.
//
//   LogLine(LogLevel::kInfo, "ready").With("model", name).With("slots", 64);   // written at the
//   end of the statement

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "server/config.h"

namespace skein::server {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

// Called once, before other threads log.
void InitLog(const LogConfig& config);
// The level of a new configuration; any thread.
void SetLogLevel(const LogConfig& config);
// Lines that could not be written, since the start: a full disk, or a pipe that nobody reads.
int64_t LostLogLines();

class LogLine {
 public:
  LogLine(LogLevel level, absl::string_view message);
  ~LogLine();
  LogLine(const LogLine&) = delete;
  LogLine& operator=(const LogLine&) = delete;

  LogLine& With(absl::string_view key, absl::string_view value);
  LogLine& With(absl::string_view key, const std::string& value) {
    return With(key, absl::string_view(value));
  }
  LogLine& With(absl::string_view key, const char* value) {
    return With(key, absl::string_view(value));
  }
  LogLine& With(absl::string_view key, int64_t value);
  LogLine& With(absl::string_view key, int32_t value) { return With(key, int64_t{value}); }
  LogLine& With(absl::string_view key, double value);

 private:
  const LogLevel level_;
  const bool enabled_;
  nlohmann::ordered_json fields_;
};

}  // namespace skein::server
