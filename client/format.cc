#include "client/format.h"

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "engine/tokenizer.h"

namespace skein::client {

std::string HumanBytes(int64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
}

std::string LocalTime(const google::protobuf::Timestamp& time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(time.seconds()),
                          absl::LocalTimeZone());
}

std::string FinishReasonName(v1::FinishReason reason) {
  absl::string_view name = v1::FinishReason_Name(reason);
  absl::ConsumePrefix(&name, "FINISH_REASON_");
  return absl::AsciiStrToLower(name);
}

std::string Quoted(absl::string_view bytes) {
  return absl::StrCat(
      "\"", engine::IsValidUtf8(bytes) ? absl::Utf8SafeCEscape(bytes) : absl::CHexEscape(bytes),
      "\"");
}

std::string Preview(absl::string_view text, int width) {
  std::string line;
  int code_points = 0;
  for (const char c : text) {
    const bool starts = (c & 0xC0) != 0x80;
    if (starts && ++code_points > width) return line + "...";
    line.push_back(c == '\n' || c == '\r' || c == '\t' ? ' ' : c);
  }
  return line;
}

std::string WithoutTemplate(absl::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  absl::ConsumePrefix(&text, "User:");
  absl::ConsumeSuffix(&text, "Assistant:");
  return std::string(absl::StripAsciiWhitespace(text));
}

std::string OneLine(const v1::Conversation& conversation) {
  return absl::StrCat(conversation.id(), ": version ", conversation.head_version(), ", ",
                      conversation.tokens(), " tokens, ", HumanBytes(conversation.state_bytes()),
                      " of states, used ", LocalTime(conversation.used()),
                      conversation.busy() ? ", busy" : "");
}

std::string OneLine(const v1::Version& version, bool head) {
  return absl::StrFormat(
      "%s %4d <- %-4d %6d tokens  %-12s %s -> %s", head ? "*" : " ", version.id(), version.parent(),
      version.tokens(),
      version.prompt_state().empty() ? FinishReasonName(version.finish_reason()) : "prompt",
      Preview(WithoutTemplate(version.input()), 40),
      Preview(WithoutTemplate(version.output()), 40));
}

}  // namespace skein::client
