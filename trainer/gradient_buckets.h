#pragma once
// The sum of all processes' gradients, begun while the backward pass still goes on.
//
// The flat gradient (parameters.h) is cut into buckets of equal size. A bucket is ready when
// the gradients of the parameters that reach into it are complete. That happens from the
// head down to the embedding, so buckets are sent in the order of their first parameter in the
// model, last one first. All processes must send alike: one that is ready early waits for its turn,
// and the order and the cuts depend on nothing but the model.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/data_parallel.h"
#include "trainer/parameters.h"

namespace skein::trainer {

class GradientBuckets {
 public:
  static constexpr int64_t kBucket = 1 << 20;  // floats

  // Both outlive the buckets. One process: nothing happens.
  GradientBuckets(Parameters* parameters, DataParallel* processes, int64_t bucket = kBucket);
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // Before the backward pass that completes the gradient: from here on buckets are sent.
  void Begin();
  // The pass has completed the gradient of this parameter, by its place in the model.
  void OnGradient(int parameter);
  // Sends what is left and waits: then parameters->gradient() holds the sum, in every process.
  // Without Begin (the pass was given up, the gradient is worth nothing): the others get their sums
  // all the same.
  void Finish();

 private:
  struct Bucket {
    int64_t begin, end;        // in the flat gradient
    int first;                 // parameter, by its place in the model
    std::vector<int> members;  // parameters
    size_t missing = 0;        // of them, in this pass
  };
  void SendReady();
  void Send(const Bucket& bucket);

  Parameters* const parameters_;
  DataParallel* const processes_;
  at::Tensor part_;              // this process's gradient, while it is sent
  std::vector<Bucket> buckets_;  // in the order in which they are sent
  size_t sent_ = 0;              // buckets, in this pass
  bool counting_ = false;        // between Begin and Finish
};

}  // namespace skein::trainer
