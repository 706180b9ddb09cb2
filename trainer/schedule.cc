#include "trainer/schedule.h"

#include <algorithm>
#include <cmath>

namespace skein::trainer {

double Schedule::At(int64_t step) const {
  const int64_t decay_steps = std::max<int64_t>(1, steps - warmup);
  const double progress =
      std::clamp(static_cast<double>(step - warmup) / static_cast<double>(decay_steps), 0.0, 1.0);
  const double f = lr_final / lr;
  double rate = lr * ((1 + f) / 2 + (1 - f) / 2 * std::cos(M_PI * progress));
  if (step < warmup) {
    rate *= 0.01 + 0.99 * static_cast<double>(step) / static_cast<double>(warmup);
  }
  return rate;
}

}  // namespace skein::trainer
