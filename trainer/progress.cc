#include "trainer/progress.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace skein::trainer {
namespace {

constexpr int kLongestBar = 24, kShortestBar = 4;  // characters inside the brackets

// mpirun reads what its processes print through a terminal of its own making. Whether a person sees
// it is a question of mpirun's own output. Open until the program ends.
int Terminal() {
  if (isatty(STDOUT_FILENO) == 0) return -1;
  if (getenv("OMPI_COMM_WORLD_SIZE") == nullptr) return STDOUT_FILENO;
  const std::string screen = absl::StrCat("/proc/", getppid(), "/fd/1");
  const int file = open(screen.c_str(), O_RDONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  return file >= 0 && isatty(file) != 0 ? file : -1;
}

int Columns(int terminal) {
  winsize size{};
  return ioctl(terminal, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

struct Part {
  std::string text;
  int rank;  // 1: the last to be left out
};

std::string Join(const std::vector<Part>& parts, int rank) {
  std::string line;
  for (const Part& part : parts) {
    if (part.rank <= rank) absl::StrAppend(&line, line.empty() ? "" : "  ", part.text);
  }
  return line;
}

}  // namespace

std::string BarLine(const StepLine& line, double seconds_left, int columns) {
  const std::vector<Part> parts = {{absl::StrFormat("%d/%d", line.step, line.steps), 1},
                                   {absl::StrFormat("loss %.4f", line.loss), 3},
                                   {absl::StrFormat("lr %.1e", line.lr), 5},
                                   {absl::StrFormat("grad %.2f", line.norm), 6},
                                   {absl::StrFormat("%.0f tok/s", line.tokens_per_second), 4},
                                   {absl::StrCat("ETA ", Duration(seconds_left)), 2}};
  // The last column stays empty: some terminals wrap when it is written.
  const int room = std::max(columns - 1, 0);
  int rank = static_cast<int>(parts.size());
  std::string text = Join(parts, rank);
  while (static_cast<int>(text.size()) > room && rank > 1) text = Join(parts, --rank);
  text.resize(std::min(text.size(), static_cast<size_t>(room)));
  const int bar = std::min(room - static_cast<int>(text.size()) - 3, kLongestBar);
  if (bar < kShortestBar) return text;
  const int filled = static_cast<int>(bar * line.step / std::max<int64_t>(1, line.steps));
  return absl::StrCat("[", std::string(filled, '#'), std::string(bar - filled, '.'), "] ", text);
}

std::string Duration(double seconds) {
  const int64_t s = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  if (s >= 3600) return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

ProgressBar::ProgressBar(int64_t first, int64_t every)
    : first_(first), every_(every), terminal_(Terminal()) {}

void ProgressBar::Show(const StepLine& line) {
  const auto now = Clock::now();
  const bool last = line.step == line.steps;
  const bool due =
      terminal_ >= 0 ? now - drawn_ > std::chrono::milliseconds(100) : line.step % every_ == 0;
  if (!due && !last) return;
  drawn_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double done = static_cast<double>(line.step - first_);
  const double left = done > 0 ? seconds / done * static_cast<double>(line.steps - line.step) : 0;
  if (terminal_ >= 0) {
    std::printf("\r\033[K%s", BarLine(line, left, Columns(terminal_)).c_str());
    open_ = true;
  } else {
    absl::PrintF("step %d/%d  loss %.4f  lr %.2e  grad %.2f  %.0f tok/s  ETA %s\n", line.step,
                 line.steps, line.loss, line.lr, line.norm, line.tokens_per_second, Duration(left));
  }
  std::fflush(stdout);
}

void ProgressBar::Print(const std::string& text) {
  if (open_) std::printf("\r\033[K");
  open_ = false;
  std::printf("%s\n", text.c_str());
  std::fflush(stdout);
}

void ProgressBar::Finish() {
  if (open_) std::printf("\n");
  open_ = false;
  std::fflush(stdout);
}

}  // namespace skein::trainer
