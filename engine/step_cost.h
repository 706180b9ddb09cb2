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
  // The least that these tokens of a prompt, and then this many steps of output, were ever seen to
  // take; zero until enough steps were seen. What was slow once, for whatever reason, does not
  // count.
  absl::Duration AtLeast(int64_t prompt_tokens, int64_t steps) const;
  // What these prompt tokens add to the steps that hold them.
  absl::Duration PrefillTime(int64_t tokens) const { return absl::Seconds(cost_[2] * tokens); }
  // The most prefill tokens that fit beside these decode rows into `target`; 0 when none do, and a
  // very large number while nothing is known.
  int64_t PrefillThatFits(int32_t decode_rows, absl::Duration target) const;

 private:
  static constexpr int kTerms = 3;
  using Vector = std::array<double, kTerms>;
  void Solve();

  std::array<Vector, kTerms> moments_{};  // sum of x x^T, decayed
  Vector targets_{};                      // sum of x y, decayed
  // The best of the steps seen, which slowly fades.
  double best_token_ = 0, best_step_ = 0;  // seconds for a prompt token; for a whole step
  int32_t prefills_ = 0, steps_ = 0;       // seen, up to kEnough
  Vector cost_{};  // seconds: fixed, per decode row, per prefill token; never negative
};

}  // namespace skein::engine
