#include "trainer/optimizer.h"

#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "kernels/torch_ops.h"

namespace skein::trainer {

Optimizer::Optimizer(Parameters* parameters, const TrainConfig& config)
    : parameters_(parameters),
      config_(config),
      m_(at::zeros_like(parameters->master())),
      v_(at::zeros_like(parameters->master())) {}

double Optimizer::GradientNorm() const {
  return std::sqrt(kernels::SquaredNorm(parameters_->gradient()));
}

void Optimizer::Step(double lr, double norm) {
  ++updates_;
  const double scale = config_.clip > 0 && norm > config_.clip ? config_.clip / norm : 1.0;
  for (Group group : {Group::kMatrix, Group::kOther, Group::kDecayBase}) {
    const auto [begin, end] = parameters_->Range(group);
    if (begin == end) continue;
    at::Tensor p = parameters_->master().narrow(0, begin, end - begin);
    at::Tensor m = m_.narrow(0, begin, end - begin), v = v_.narrow(0, begin, end - begin);
    kernels::AdamW(p, parameters_->gradient().narrow(0, begin, end - begin), m, v, updates_,
                   group == Group::kDecayBase ? 2 * lr : lr, config_.beta1, config_.beta2,
                   config_.eps, group == Group::kMatrix ? config_.weight_decay : 0.0, scale);
  }
  parameters_->gradient().zero_();
}

void Optimizer::Skip() { parameters_->gradient().zero_(); }

}  // namespace skein::trainer
