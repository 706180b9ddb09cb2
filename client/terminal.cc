#include "client/terminal.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "client/interrupt.h"

namespace skein::client {
namespace {

// C0 but newline and tab, DEL, and C1 (U+0080..U+009F) in UTF-8.
std::string Harmless(absl::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    if (byte == 0x7F || (byte < 0x20 && byte != '\n' && byte != '\t')) {
      absl::StrAppend(&out, "^", std::string(1, static_cast<char>(byte ^ 0x40)));
    } else if (byte == 0xC2 && i + 1 < text.size() && (text[i + 1] & 0xE0) == 0x80) {
      out += "\xEF\xBF\xBD";
      ++i;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

Terminal Terminal::Standard() {
  Options options;
  options.input_is_terminal = isatty(STDIN_FILENO) == 1;
  options.output_is_terminal = isatty(STDOUT_FILENO) == 1;
  const char* no_color = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  options.color = options.output_is_terminal && (no_color == nullptr || *no_color == '\0') &&
                  term != nullptr && absl::string_view(term) != "dumb";
  return Terminal(STDIN_FILENO, &std::cout, &std::cerr, options);
}

void Terminal::Text(absl::string_view text) {
  if (text.empty()) return;
  ClearTransient();
  out_ << (options_.output_is_terminal ? Harmless(text) : std::string(text)) << std::flush;
}

void Terminal::Newline() {
  ClearTransient();
  out_ << '\n' << std::flush;
}

void Terminal::Dim(absl::string_view line) {
  ClearTransient();
  out_ << (options_.color ? "\033[2m" : "");
  Text(line);
  out_ << (options_.color ? "\033[0m\n" : "\n") << std::flush;
}

void Terminal::Faint(absl::string_view text) {
  if (text.empty()) return;
  ClearTransient();
  out_ << (options_.color ? "\033[2m" : "");
  Text(text);
  out_ << (options_.color ? "\033[0m" : "") << std::flush;
}

void Terminal::Bold(absl::string_view text) {
  ClearTransient();
  out_ << (options_.color ? "\033[1m" : "");
  Text(text);
  out_ << (options_.color ? "\033[0m" : "") << std::flush;
}

void Terminal::Transient(absl::string_view line) {
  if (!interactive() || !options_.color) return;
  ClearTransient();
  out_ << "\033[2m" << Harmless(line) << "\033[0m" << std::flush;
  transient_ = true;
}

void Terminal::ClearTransient() {
  if (!transient_) return;
  out_ << "\r\033[2K";
  transient_ = false;
}

void Terminal::Raw(absl::string_view bytes) {
  ClearTransient();
  out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  out_ << std::flush;
}

void Terminal::Error(absl::string_view line) {
  ClearTransient();
  out_ << std::flush;
  err_ << Harmless(line) << std::endl;
}

bool Terminal::Fill() {
  char bytes[4096];
  ssize_t n;
  while ((n = read(input_fd_, bytes, sizeof(bytes))) < 0 && errno == EINTR) {
  }
  if (n <= 0) return false;
  buffered_.append(bytes, n);
  return true;
}

Terminal::Read Terminal::ReadLine(absl::string_view prompt, Interrupts* interrupts,
                                  std::string* line) {
  if (interactive()) Bold(prompt);
  size_t end;
  while ((end = buffered_.find('\n')) == std::string::npos) {
    pollfd fds[2] = {{input_fd_, POLLIN, 0},
                     {interrupts != nullptr ? interrupts->fd() : -1, POLLIN, 0}};
    if (poll(fds, 2, -1) < 0 && errno == EINTR) continue;
    if (fds[1].revents != 0 && interrupts->Take()) return Read::kInterrupted;
    if (fds[0].revents == 0 || Fill()) continue;
    if (buffered_.empty()) return Read::kEnd;
    end = buffered_.size();
    break;
  }
  *line = buffered_.substr(0, end);
  buffered_.erase(0, end + 1);
  if (!line->empty() && line->back() == '\r') line->pop_back();
  return Read::kLine;
}

bool Terminal::ReadAll(std::string* text) {
  while (Fill()) {
  }
  *text = std::move(buffered_);
  buffered_.clear();
  return !text->empty();
}

}  // namespace skein::client
