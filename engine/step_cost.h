#pragma once
// How long a step takes, learned online: a + b * decode rows + c * prefill tokens. Least squares
// over the steps seen, old ones forgotten, pulled towards the present estimate where the data says
// nothing. Pure.

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace skein::engine {

class StepCost {
 public:
  void Learn(int32_t decode_rows, int32_t prefill_tokens, absl::Duration measured);
  absl::Duration Predict(int32_t decode_rows, int32_t prefill_tokens) const;
  // The most prefill tokens that fit beside these decode rows into `target`; 0 when none do, and a
  // very large number while nothing is known.
  int64_t PrefillThatFits(int32_t decode_rows, absl::Duration target) const;

 private:
  static constexpr int kTerms = 3;
  using Vector = std::array<double, kTerms>;
  void Solve();

  std::array<Vector, kTerms> moments_{};  // sum of x x^T, decayed
  Vector targets_{};                      // sum of x y, decayed
  Vector cost_{};  // seconds: fixed, per decode row, per prefill token; never negative
};

}  // namespace skein::engine
