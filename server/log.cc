#include "server/log.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log_sink.h"
#include "spdlog/sinks/base_sink.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace skein::server {
namespace {

constexpr char kMessage[] = "message";
// Bytes of a value: clients choose ids and paths, and what they send may be as big as a message.
constexpr size_t kMaxValue = 4096;

std::atomic<bool> json_format{false};

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

LogSink& StandardError() {
  static LogSink& sink = *new LogSink(STDERR_FILENO);  // outlives every thread that logs
  return sink;
}

class PatientSink final : public spdlog::sinks::base_sink<std::mutex> {
 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t line;
    formatter_->format(message, line);
    StandardError().Write(absl::string_view(line.data(), line.size()));
  }
  void flush_() override {}
};

// Invalid UTF-8 is replaced, control characters are escaped.
std::string Dump(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

bool IsPlain(const std::string& text) {
  for (unsigned char c : text) {
    if (c <= ' ' || c == '"' || c == '=' || c == '\\' || c >= 0x7F) return false;
  }
  return !text.empty();
}

std::string ToText(const nlohmann::ordered_json& fields) {
  std::string out;
  for (const auto& [key, value] : fields.items()) {
    if (key == kMessage) {
      out = value.get<std::string>();
    } else if (value.is_string() && IsPlain(value.get<std::string>())) {
      absl::StrAppend(&out, " ", key, "=", value.get<std::string>());
    } else {
      absl::StrAppend(&out, " ", key, "=", Dump(value));
    }
  }
  return out;
}

}  // namespace

void InitLog(const LogConfig& config) {
  json_format = config.format == "json";
  std::shared_ptr<spdlog::sinks::sink> sink;
  if (isatty(STDERR_FILENO) == 1) {
    sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
  } else {
    sink = std::make_shared<PatientSink>();
  }
  auto logger = std::make_shared<spdlog::logger>("skeind", std::move(sink));
  logger->set_level(spdlog::level::from_str(config.level));
  logger->set_pattern(json_format ? "{\"time\":\"%Y-%m-%dT%H:%M:%S.%e%z\",\"level\":\"%l\",%v"
                                  : "%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
  spdlog::set_default_logger(std::move(logger));
}

void SetLogLevel(const LogConfig& config) {
  spdlog::default_logger_raw()->set_level(spdlog::level::from_str(config.level));
}

int64_t LostLogLines() { return StandardError().lost(); }

LogLine::LogLine(LogLevel level, absl::string_view message)
    : level_(level), enabled_(spdlog::default_logger_raw()->should_log(ToSpdlog(level))) {
  if (enabled_) fields_[kMessage] = std::string(message);
}

LogLine::~LogLine() {
  if (!enabled_) return;
  // In JSON the pattern opens the object, so our own opening brace is cut off.
  const std::string line = json_format ? Dump(fields_).substr(1) : ToText(fields_);
  spdlog::default_logger_raw()->log(ToSpdlog(level_),
                                    spdlog::string_view_t(line.data(), line.size()));
}

LogLine& LogLine::With(absl::string_view key, absl::string_view value) {
  if (!enabled_) return *this;
  std::string shown(value.substr(0, kMaxValue));
  if (value.size() > kMaxValue) absl::StrAppend(&shown, "... (", value.size(), " bytes)");
  fields_[std::string(key)] = std::move(shown);
  return *this;
}

LogLine& LogLine::With(absl::string_view key, int64_t value) {
  if (enabled_) fields_[std::string(key)] = value;
  return *this;
}

LogLine& LogLine::With(absl::string_view key, double value) {
  if (enabled_) fields_[std::string(key)] = std::round(value * 1e6) / 1e6;
  return *this;
}

}  // namespace skein::server
