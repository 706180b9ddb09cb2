#include "engine/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"
#include "engine/checkpoint.h"
#include "nlohmann/json.hpp"

namespace skein::engine {
namespace {

constexpr int32_t kWorldRows = 65536;
constexpr char kSeparator[] = "\n\n";
constexpr char kOpenAssistant[] = "Assistant:";

// "\n\nUser" is what every RWKV front end stops at. A system turn in the middle of an answer is as
// foreign as a user's; with its colon, so that a paragraph about "System requirements" goes on.
std::vector<std::string> DefaultStops() { return {"\n\nUser", "\n\nSystem:"}; }

const char* Label(Role role) {
  switch (role) {
    case Role::kSystem:
      return "System: ";
    case Role::kUser:
      return "User: ";
    case Role::kAssistant:
      return "Assistant: ";
    case Role::kTool:
      return "User: Function output:\n";
  }
  return "";
}

absl::string_view BehindTheUser(Thinking thinking) {
  switch (thinking) {
    case Thinking::kShort:
      return " (think a bit)";
    case Thinking::kMedium:
      return " (think)";
    case Thinking::kLong:
      return " (think a lot)";
    default:
      return "";
  }
}

absl::string_view BehindTheAssistant(Thinking thinking) {
  if (thinking == Thinking::kOff) return "";
  return thinking == Thinking::kFast ? " <think>\n</think" : " <think";
}

// Only "\n\n" separates turns, so none may stand inside what a user or a system says. An answer
// keeps its paragraphs, as the model wrote them.
std::string Clean(const Message& message) {
  std::string text = absl::StrReplaceAll(message.content, {{"\r\n", "\n"}});
  if (message.role != Role::kAssistant) {
    std::string joined;
    for (const char c : text) {
      if (c != '\n' || joined.empty() || joined.back() != '\n') joined.push_back(c);
    }
    text = std::move(joined);
  }
  return std::string(absl::StripAsciiWhitespace(text));
}

absl::StatusOr<std::vector<std::string>> ParseStops(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> stops;
  bool valid = json.is_array();
  for (size_t i = 0; valid && i < json.size(); ++i) {
    valid = json[i].is_string();
    if (valid) stops.push_back(json[i].get<std::string>());
  }
  if (!valid) {
    return absl::InvalidArgumentError(
        absl::StrCat("metadata ", kMetaStops, " is not a JSON list of strings"));
  }
  return stops;
}

}  // namespace

absl::StatusOr<ChatTemplate> ChatTemplate::Create(absl::string_view name,
                                                  std::vector<std::string> stops) {
  if (name != "rwkv" && name != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template '", name, "' is unknown; supported are 'rwkv' and 'none'"));
  }
  for (const std::string& stop : stops) {
    if (stop.empty())
      return absl::InvalidArgumentError("a stop string of the chat template is empty");
  }
  ChatTemplate result;
  result.name_ = std::string(name);
  result.stops_ = std::move(stops);
  if (name == "rwkv") {
    result.separator_ = std::string(kSeparator);
    if (result.stops_.empty()) result.stops_ = DefaultStops();
  }
  return result;
}

absl::StatusOr<ChatTemplate> ChatTemplate::For(const Checkpoint& checkpoint) {
  const auto& metadata = checkpoint.metadata();
  std::vector<std::string> stops;
  if (const auto it = metadata.find(kMetaStops); it != metadata.end()) {
    auto parsed = ParseStops(it->second);
    if (!parsed.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path(), ": ", parsed.status().message()));
    }
    stops = *std::move(parsed);
  }
  std::string name = "none";
  if (const auto it = metadata.find(kMetaChatTemplate); it != metadata.end()) {
    name = it->second;
  } else {
    SKEIN_ASSIGN_OR_RETURN(const ModelConfig config, checkpoint.Config());
    if (config.V == kWorldRows) name = "rwkv";
  }
  auto result = Create(name, std::move(stops));
  if (!result.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": ", result.status().message()));
  }
  return result;
}

absl::StatusOr<std::string> ChatTemplate::RenderTurns(const std::vector<Message>& messages) const {
  if (!available()) {
    return absl::FailedPreconditionError(
        "the model has no chat template: send plain text instead of messages");
  }
  if (messages.empty()) return absl::InvalidArgumentError("there are no messages");
  std::string text;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string content = Clean(messages[i]);
    if (content.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "] has no content"));
    }
    absl::StrAppend(&text, i == 0 ? "" : separator_, Label(messages[i].role), content);
  }
  return text;
}

absl::StatusOr<std::string> ChatTemplate::Render(const std::vector<Message>& messages,
                                                 Thinking thinking) const {
  const bool open = !messages.empty() && messages.back().role == Role::kAssistant;
  if (open && thinking != Thinking::kOff) {
    return absl::InvalidArgumentError(
        "an answer that is to be continued (the last message is the assistant's) has no thinking");
  }
  std::vector<Message> turns = messages;
  const absl::string_view behind = BehindTheUser(thinking);
  if (!behind.empty()) {
    const auto user = std::find_if(turns.rbegin(), turns.rend(),
                                   [](const Message& m) { return m.role == Role::kUser; });
    if (user == turns.rend()) {
      return absl::InvalidArgumentError(
          "how long to think is written behind a user's message, and there is none; say 'on'");
    }
    const absl::string_view content = absl::StripAsciiWhitespace(user->content);
    user->content = content.empty() ? std::string() : absl::StrCat(content, behind);
  }
  SKEIN_ASSIGN_OR_RETURN(std::string text, RenderTurns(turns));
  if (!open) absl::StrAppend(&text, separator_, kOpenAssistant, BehindTheAssistant(thinking));
  return text;
}

TemplateCursor ChatTemplate::CursorAfter(absl::string_view tail) const {
  if (tail.empty()) return TemplateCursor::kStart;
  return absl::EndsWith(tail, separator_) ? TemplateCursor::kClosedTurn : TemplateCursor::kOpenTurn;
}

}  // namespace skein::engine
