#pragma once
// One batch of training, forward and backward, without autograd: Rwkv7::Hidden and the loss on the
// operators of kernels/torch/operators.h, and the same backwards. What a step computes stays where
// it is and is overwritten by the next one, and the gradients of weights are added where the
// optimizer reads them. Hidden with autograd is the specification
// (tests/trainer/rwkv7_step_test.cc).

#include <ATen/core/Tensor.h>

#include <array>
#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "kernels/torch/operators.h"
#include "trainer/batches.h"
#include "trainer/models/rwkv7.h"

namespace skein::trainer {

class Rwkv7Step {
 public:
  // `model` outlives the step.
  explicit Rwkv7Step(Rwkv7* model);
  ~Rwkv7Step();
  Rwkv7Step(const Rwkv7Step&) = delete;
  Rwkv7Step& operator=(const Rwkv7Step&) = delete;

  struct Loss {
    double value = 0;              // its share, where a step has several batches
    double cross_entropy_sum = 0;  // weighted, not divided
  };
  // Adds the batch's gradient to the model's, and calls done(i) when that of parameter i is
  // complete, from the head down to the embedding. Where the loss is not finite, the gradient is
  // worth nothing and done is not called. options.state is not for training.
  Loss Run(
      const Batch& batch, const ForwardOptions& options, double l2wrap,
      const LossDenominators& denominators, const std::function<void(int)>& done = [](int) {});

 private:
  struct Block;
  struct Gradients;

  void Forward(const Batch& batch, const ForwardOptions& options);
  void TimeMix(size_t l);
  void ChannelMix(size_t l);

  // d_->x is the gradient of the residual stream, from its end back.
  void Backward(const Batch& batch, const std::function<void(int)>& done);
  void ChannelMixGrad(size_t l);  // of what the mix reads, by d_->x
  void TimeMixGrad(size_t l);
  void ValueFirstGrad(size_t l);
  const at::Tensor& MixGrad(const at::Tensor& mask);
  // d_->x goes from behind the norm to in front of it.
  void NormGrad(const kernels::operators::AddNormMix& op, const at::Tensor& d_sum,
                at::TensorList d_mixes, std::initializer_list<int> parameters,
                kernels::operators::AddNormMixGrad* grad);

  // y = x W^T; and of it the gradients of x (overwritten) and W (added).
  void Linear(const at::Tensor& x, int w, at::Tensor* y) const;
  void LinearGrad(const at::Tensor& x, int w, const at::Tensor& d_y, at::Tensor* d_x) const;
  // `weights`: w1, w2 and bias or -1; add: to *d_x, else it is overwritten.
  void LowRankGrad(const kernels::operators::LowRank& op, const at::Tensor& d_y,
                   const std::array<int, 3>& weights, bool add,
                   kernels::operators::LowRankGrad* grad, at::Tensor* d_x) const;
  void SetNorm(int weight, int bias, const at::Tensor& mix,
               kernels::operators::AddNormMix* op) const;
  void SetLowRank(int w1, int w2, int bias, const char* activation,
                  kernels::operators::LowRank* op) const;
  // Adds the rows of `weights`, in order, to the gradients of these parameters.
  void AddWeights(const at::Tensor& weights, std::initializer_list<int> parameters) const;
  const at::Tensor& leaf(int index) const { return model_->parameters().leaf(index); }
  const at::Tensor& gradient(int index) const { return gradients_[static_cast<size_t>(index)]; }

  Rwkv7* const model_;
  const bool bf16_;
  std::vector<at::Tensor> gradients_;  // of the parameters, views of the flat gradient
  std::vector<std::unique_ptr<Block>> blocks_;
  std::unique_ptr<Gradients> d_;
  at::Tensor no_mix_;  // [1, C] zeros: a norm without token shift is a mix of nothing
  kernels::operators::AddNormMix norm_in_, norm_out_;
  kernels::operators::HeadCrossEntropy head_;
  at::Tensor embedded_, mask_;
};

}  // namespace skein::trainer
