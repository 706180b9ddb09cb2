#pragma once
// Chat templates: how messages become the text that a model was trained on, and where its answers
// stop. rwkv: "System: ...\n\nUser: ...\n\nAssistant:"; answers stop before "\n\nUser" (or what the
// checkpoint says). Pure and thread-safe.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

class Checkpoint;

enum class Role { kSystem, kUser, kAssistant };

struct Message {
  Role role = Role::kUser;
  std::string content;
};

// Where a conversation's text stands; kept with each version.
enum class TemplateCursor {
  kStart,       // nothing yet
  kOpenTurn,    // a turn's text is not closed: the separator comes first
  kClosedTurn,  // the text ends with the separator
};

class ChatTemplate {
 public:
  // "rwkv" or "none"; stops override the default ones when not empty.
  static absl::StatusOr<ChatTemplate> Create(absl::string_view name,
                                             std::vector<std::string> stops);
  static absl::StatusOr<ChatTemplate> For(
      const Checkpoint& checkpoint);  // from metadata; rwkv for World models

  const std::string& name() const { return name_; }
  bool available() const { return name_ != "none"; }
  const std::vector<std::string>& stops() const { return stops_; }
  // "\n\n": what must stand between an open turn and the next one. The caller encodes it on its
  // own.
  const std::string& separator() const { return separator_; }
  // The text of the messages, without a leading separator. A last message of the user (or system)
  // ends with
  // "\n\nAssistant:"; one of the assistant is left open, to be continued. Content is cleaned: CRLF
  // -> LF, runs of newlines -> one, stripped. INVALID_ARGUMENT: empty list or empty content, with
  // its index.
  absl::StatusOr<std::string> Render(const std::vector<Message>& messages) const;
  // The cursor after a conversation that ends with these bytes (at least the last
  // separator().size() of them).
  TemplateCursor CursorAfter(absl::string_view tail) const;

 private:
  std::string name_;
  std::string separator_;
  std::vector<std::string> stops_;
};

}  // namespace skein::engine
