#pragma once
// What the user sees of the steps: a bar that redraws itself on a terminal, plain lines elsewhere.

#include <chrono>
#include <cstdint>
#include <string>

namespace skein::trainer {

struct StepLine {
  int64_t step = 0, steps = 0;
  double loss = 0, lr = 0, norm = 0, tokens_per_second = 0;
};

class ProgressBar {
 public:
  // first: the step that this process starts from. `every`: steps between plain lines.
  ProgressBar(int64_t first, int64_t every);
  // Redraws at most ten times a second, or prints every `every` steps and at the end.
  void Show(const StepLine& line);
  // Prints text above the bar.
  void Print(const std::string& text);
  // Leaves the bar on the screen and goes to a new line.
  void Finish();

 private:
  using Clock = std::chrono::steady_clock;
  const int64_t first_, every_;
  const int terminal_;  // file descriptor; -1: no terminal shows what is printed
  const Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_{};
  bool open_ = false;  // a bar stands on the current line
};

// The bar as it stands on a terminal: at most `columns` - 1 characters. A narrow terminal gets a
// shorter bar or none, then loses the gradient norm first, the learning rate next, the ETA last.
std::string BarLine(const StepLine& line, double seconds_left, int columns);

// "1:02:03", "4:05"
std::string Duration(double seconds);

}  // namespace skein::trainer
