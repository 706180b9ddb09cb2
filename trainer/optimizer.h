#pragma once
// AdamW over the flat parameter buffer: one pass per group, clipped by the global gradient norm.

#include <ATen/core/Tensor.h>

#include "trainer/config.h"
#include "trainer/parameters.h"

namespace skein::trainer {

class Optimizer {
 public:
  // `parameters` outlives the optimizer.
  Optimizer(Parameters* parameters, const TrainConfig& config);

  // One update with the gradient in parameters->gradient(), which it then zeroes. `norm` is that
  // gradient's.
  void Step(double lr, double norm);
  // Zeroes the gradient without an update.
  void Skip();
  double GradientNorm() const;

  int64_t updates() const { return updates_; }  // made so far: the bias correction counts these
  void set_updates(int64_t n) { updates_ = n; }
  at::Tensor& m() { return m_; }
  at::Tensor& v() { return v_; }

 private:
  Parameters* const parameters_;
  const TrainConfig config_;
  at::Tensor m_, v_;  // [n] fp32
  int64_t updates_ = 0;
};

}  // namespace skein::trainer
