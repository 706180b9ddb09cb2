#pragma once
// Random arrays in double with their float copies, and comparisons between the two, for tests of
// kernels/train.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/train/train_ops.h"

namespace skein::kernels::train {

using Doubles = std::vector<double>;

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // Values that a float holds exactly, so that both types start from the same numbers.
  Doubles Normal(int64_t n, double scale = 1) {
    Doubles out(n);
    for (double& x : out) x = static_cast<float>(scale * normal_(engine_));
    return out;
  }
  Doubles Uniform(int64_t n) {
    Doubles out(n);
    for (double& x : out) x = static_cast<float>(uniform_(engine_));
    return out;
  }
  // n flags, each set with this probability.
  std::unique_ptr<bool[]> Flags(int64_t n, double probability) {
    auto out = std::make_unique<bool[]>(n);
    for (int64_t i = 0; i < n; ++i) out[i] = uniform_(engine_) < probability;
    return out;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<double> normal_;
  std::uniform_real_distribution<double> uniform_;
};

// Owns the arrays of one call in one type.
template <class Real>
class Arrays {
 public:
  const Real* In(const Doubles& values) {
    kept_.push_back(std::make_unique<std::vector<Real>>(values.begin(), values.end()));
    return kept_.back()->data();
  }
  // Poisoned: what is not written shows as NaN.
  Real* Out(int64_t n) {
    kept_.push_back(std::make_unique<std::vector<Real>>(n, std::numeric_limits<Real>::quiet_NaN()));
    outputs_.push_back(kept_.back().get());
    return kept_.back()->data();
  }
  // Outputs in the order in which they were asked for.
  const std::vector<Real>& output(size_t i) const { return *outputs_[i]; }
  size_t num_outputs() const { return outputs_.size(); }

 private:
  std::vector<std::unique_ptr<std::vector<Real>>> kept_;
  std::vector<std::vector<Real>*> outputs_;
};

// Each output of `actual` is near `expected`'s, relative to that output's largest value.
template <class Real>
void ExpectNear(const Arrays<Real>& actual, const Arrays<double>& expected, double tolerance) {
  ASSERT_EQ(actual.num_outputs(), expected.num_outputs());
  for (size_t i = 0; i < actual.num_outputs(); ++i) {
    double largest = 1, error = 0;
    for (size_t j = 0; j < expected.output(i).size(); ++j) {
      const double difference = std::abs(actual.output(i)[j] - expected.output(i)[j]);
      largest = std::max(largest, std::abs(expected.output(i)[j]));
      error = std::isnan(difference) ? difference : std::max(error, difference);
      if (std::isnan(difference)) break;
    }
    EXPECT_LE(error, tolerance * largest) << "output " << i;
  }
}

// The tiers that this machine has.
inline std::vector<const TrainOps<float>*> Tiers() {
  std::vector<const TrainOps<float>*> tiers;
  for (const char* name : {"plain", "avx2", "avx512", "amx"}) {
    if (const TrainOps<float>* ops = FindTrainOps(name)) tiers.push_back(ops);
  }
  return tiers;
}

}  // namespace skein::kernels::train
