#include "trainer/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace skein::trainer {
namespace {

constexpr int kBar = 24;  // characters

int Columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string Duration(double seconds) {
  const int64_t s = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9) + 0.5);
  if (s >= 3600) return absl::StrFormat("%d:%02d:%02d", s / 3600, s / 60 % 60, s % 60);
  return absl::StrFormat("%d:%02d", s / 60, s % 60);
}

ProgressBar::ProgressBar(int64_t first, int64_t every)
    : first_(first), every_(every), terminal_(isatty(STDOUT_FILENO) != 0) {}

void ProgressBar::Show(const StepLine& line) {
  const auto now = Clock::now();
  const bool last = line.step == line.steps;
  const bool due =
      terminal_ ? now - drawn_ > std::chrono::milliseconds(100) : line.step % every_ == 0;
  if (!due && !last) return;
  drawn_ = now;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double done = static_cast<double>(line.step - first_);
  const double left = done > 0 ? seconds / done * static_cast<double>(line.steps - line.step) : 0;
  const std::string text = absl::StrFormat(
      "step %d/%d  loss %.4f  lr %.2e  grad %.2f  %.0f tok/s  ETA %s", line.step, line.steps,
      line.loss, line.lr, line.norm, line.tokens_per_second, Duration(left));
  if (!terminal_) {
    std::printf("%s\n", text.c_str());
  } else {
    const int filled = static_cast<int>(kBar * line.step / std::max<int64_t>(1, line.steps));
    std::string bar =
        absl::StrCat("[", std::string(filled, '#'), std::string(kBar - filled, '.'), "] ", text);
    bar.resize(std::min<size_t>(bar.size(), static_cast<size_t>(Columns() - 1)));
    std::printf("\r\033[K%s", bar.c_str());
    open_ = true;
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
