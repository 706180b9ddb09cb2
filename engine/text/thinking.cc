// Thinking: its names, and how an answer's text is parted.

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/chat_template.h"

namespace skein::engine {
namespace {

constexpr absl::string_view kEnd = "</think>";

}  // namespace

const std::vector<std::string>& ThinkingNames() {
  static const std::vector<std::string>* const names =
      new std::vector<std::string>{"off", "fast", "on", "short", "medium", "long"};
  return *names;
}

absl::StatusOr<Thinking> ThinkingFromName(absl::string_view name) {
  const std::vector<std::string>& names = ThinkingNames();
  const auto it = std::find(names.begin(), names.end(), name);
  if (it != names.end()) return static_cast<Thinking>(it - names.begin());
  // The name is not said: it is a client's text, and messages are logged.
  return absl::InvalidArgumentError(absl::StrCat("must be one of ", absl::StrJoin(names, ", ")));
}

ThinkingStream::ThinkingStream(Thinking thinking)
    : place_(thinking == Thinking::kOff ? Place::kSaid : Place::kTagEnd),
      thinks_(thinking != Thinking::kFast) {}

void ThinkingStream::Push(absl::string_view text, std::string* thought, std::string* said) {
  if (place_ == Place::kTagEnd && !text.empty()) {
    if (text[0] == '>') text.remove_prefix(1);
    place_ = thinks_ ? Place::kThought : Place::kSaid;
  }
  while (place_ == Place::kThought && !text.empty()) {
    if (text[0] == kEnd[held_]) {
      text.remove_prefix(1);
      if (++held_ < static_cast<int>(kEnd.size())) continue;
      place_ = Place::kSaid;
    } else if (held_ > 0) {  // '<' is only at the beginning of the tag: nothing held begins another
      thought->append(kEnd.data(), held_);
    } else {
      const size_t next = std::min(text.find(kEnd[0]), text.size());
      thought->append(text.data(), next);
      text.remove_prefix(next);
    }
    held_ = 0;
  }
  said->append(text.data(), text.size());
}

void ThinkingStream::Finish(std::string* thought) {
  thought->append(kEnd.data(), held_);
  held_ = 0;
}

}  // namespace skein::engine
