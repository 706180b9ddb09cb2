#pragma once
// The learning rate as a function of the step alone: cosine from `lr` to `lr_final`, progress
// counted from the end of the warm-up, and the warm-up as a factor 0.01 + 0.99 step / warmup on
// top.

#include <cstdint>

namespace skein::trainer {

struct Schedule {
  double lr = 6e-4;
  double lr_final = 6e-5;
  int64_t warmup = 10;  // optimizer steps
  int64_t steps = 1000;

  double At(int64_t step) const;  // step counts from 0
};

}  // namespace skein::trainer
