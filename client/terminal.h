#pragma once
// Where `skein` reads from and writes to. Decorated output (colour, prompts, transient lines)
// appears only when both ends are a terminal; otherwise the standard output holds nothing but
// answers. One thread.

#include <ostream>
#include <string>

#include "absl/strings/string_view.h"

namespace skein::client {

class Interrupts;

class Terminal {
 public:
  struct Options {
    bool input_is_terminal = false;
    bool output_is_terminal = false;
    bool color = false;
  };
  Terminal(int input_fd, std::ostream* out, std::ostream* err, Options options)
      : input_fd_(input_fd), out_(*out), err_(*err), options_(options) {}
  // The process's own, with NO_COLOR and TERM=dumb honoured.
  static Terminal Standard();

  bool interactive() const {
    return !plain_ && options_.input_is_terminal && options_.output_is_terminal;
  }
  // No prompts and no notes from now on: the output is JSON.
  void BePlain() { plain_ = true; }
  bool input_is_terminal() const { return options_.input_is_terminal; }
  bool output_is_terminal() const { return options_.output_is_terminal; }

  // Text of a model or a server. On a terminal, control characters (which could move the cursor or
  // retitle the window) are shown as what they are, not obeyed.
  void Text(absl::string_view text);
  void Line(absl::string_view line) {
    Text(line);
    Newline();
  }
  void Newline();
  void Dim(absl::string_view line);    // a whole line, grey
  void Bold(absl::string_view text);   // no newline
  void Faint(absl::string_view text);  // grey, no newline
  // A line that the next output replaces; nothing when not interactive.
  void Transient(absl::string_view line);
  // Bytes as they are, for JSON and for what goes to files.
  void Raw(absl::string_view bytes);
  void Error(absl::string_view line);  // on the standard error
  bool good() const { return out_.good(); }

  enum class Read { kLine, kEnd, kInterrupted };
  // A line without its end; with `prompt` when interactive. `interrupts` may be null.
  Read ReadLine(absl::string_view prompt, Interrupts* interrupts, std::string* line);
  // All that is left of the input.
  bool ReadAll(std::string* text);

 private:
  void ClearTransient();
  bool Fill();  // false at the end

  const int input_fd_;
  std::ostream& out_;
  std::ostream& err_;
  const Options options_;
  std::string buffered_;  // input behind the last line
  bool transient_ = false;
  bool plain_ = false;
};

}  // namespace skein::client
