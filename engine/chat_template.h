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

// A tool's result comes back as what a user says: "User: Function output:\n...".
enum class Role { kSystem, kUser, kAssistant, kTool };

// Whether an answer begins with thinking: how "Assistant:" goes on, and what is written behind the
// user's message. The tag's '>' is left to the model, as it was trained.
enum class Thinking {
  kOff,     // nothing
  kFast,    // " <think>\n</think": it has thought already
  kOn,      // " <think"
  kShort,   // the same, and " (think a bit)" behind the last user's message
  kMedium,  // " (think)"
  kLong,    // " (think a lot)"
};
// "off", "fast", "on", "short", "medium", "long"; in this order. INVALID_ARGUMENT names them.
absl::StatusOr<Thinking> ThinkingFromName(absl::string_view name);
const std::vector<std::string>& ThinkingNames();

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

// Parts an answer's text into what was thought and what is said. The tags are in neither. One
// stream, one thread; copies go on from where they were made.
class ThinkingStream {
 public:
  ThinkingStream() : ThinkingStream(Thinking::kOff) {}
  explicit ThinkingStream(Thinking thinking);
  // Appends what `text` adds. What may become "</think>" is held back.
  void Push(absl::string_view text, std::string* thought, std::string* said);
  void Finish(std::string* thought);  // the end: what was held back

 private:
  enum class Place { kTagEnd, kThought, kSaid };
  Place place_;
  bool thinks_;      // after the tag's end
  int8_t held_ = 0;  // bytes of "</think>" held back
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
  // The text of the messages, without a leading separator. A last message of the user (or system,
  // or tool) ends with "\n\nAssistant:" and what `thinking` adds; one of the assistant is left
  // open, to be continued. Content is cleaned: CRLF -> LF, runs of newlines -> one, stripped.
  // INVALID_ARGUMENT: empty list or empty content, with its index; thinking that has no place.
  absl::StatusOr<std::string> Render(const std::vector<Message>& messages,
                                     Thinking thinking = Thinking::kOff) const;
  // The same without an answer begun: what a conversation starts from.
  absl::StatusOr<std::string> RenderTurns(const std::vector<Message>& messages) const;
  // The cursor after a conversation that ends with these bytes (at least the last
  // separator().size() of them).
  TemplateCursor CursorAfter(absl::string_view tail) const;

 private:
  std::string name_;
  std::string separator_;
  std::vector<std::string> stops_;
};

}  // namespace skein::engine
