#include "engine/step_cost.h"

#include <algorithm>
#include <limits>

namespace skein::engine {
namespace {

constexpr double kMemory = 0.97;  // weight of the past at each step: about 30 steps
constexpr double kPull = 1e-3;    // towards the present estimate
// Brings the three terms to one scale, so that the pull is as strong on each.
constexpr std::array<double, 3> kScale = {1.0, 1.0 / 8, 1.0 / 64};

constexpr int32_t kEnough = 16;  // steps before the best of them says anything
constexpr double kFade = 1.001;  // at each step

// The best of `n` so far.
void Note(double seconds, double* best, int32_t* n) {
  *best = *n == 0 ? seconds : std::min(seconds, *best * kFade);
  *n = std::min(*n + 1, kEnough);
}

}  // namespace

void StepCost::Learn(int32_t decode_rows, int32_t prefill_tokens, absl::Duration measured) {
  const Vector x = {kScale[0], kScale[1] * decode_rows, kScale[2] * prefill_tokens};
  const double y = absl::ToDoubleSeconds(measured);
  for (int i = 0; i < kTerms; ++i) {
    for (int j = 0; j < kTerms; ++j) moments_[i][j] = kMemory * moments_[i][j] + x[i] * x[j];
    targets_[i] = kMemory * targets_[i] + x[i] * y;
  }
  Solve();
  Note(y, &best_step_, &steps_);
  if (prefill_tokens > 0) Note(y / prefill_tokens, &best_token_, &prefills_);
}

absl::Duration StepCost::AtLeast(int64_t prompt_tokens, int64_t steps) const {
  double seconds = 0;
  if (prefills_ >= kEnough) seconds += best_token_ * static_cast<double>(prompt_tokens);
  if (steps_ >= kEnough) seconds += best_step_ * static_cast<double>(steps);
  return absl::Seconds(seconds);
}

// Coordinate descent on the squared error with cost >= 0: exact enough after a few rounds, and
// never negative.
void StepCost::Solve() {
  Vector scaled;
  for (int i = 0; i < kTerms; ++i) scaled[i] = cost_[i] / kScale[i];
  const Vector before = scaled;
  for (int round = 0; round < 32; ++round) {
    for (int i = 0; i < kTerms; ++i) {
      double rest = targets_[i] + kPull * before[i];
      for (int j = 0; j < kTerms; ++j) {
        if (j != i) rest -= moments_[i][j] * scaled[j];
      }
      scaled[i] = std::max(0.0, rest / (moments_[i][i] + kPull));
    }
  }
  for (int i = 0; i < kTerms; ++i) cost_[i] = scaled[i] * kScale[i];
}

absl::Duration StepCost::Predict(int32_t decode_rows, int32_t prefill_tokens) const {
  return absl::Seconds(cost_[0] + cost_[1] * decode_rows + cost_[2] * prefill_tokens);
}

int64_t StepCost::PrefillThatFits(int32_t decode_rows, absl::Duration target) const {
  const double left = absl::ToDoubleSeconds(target - Predict(decode_rows, 0));
  if (left <= 0) return 0;
  constexpr double kMany = 1e9;
  return static_cast<int64_t>(cost_[2] > left / kMany ? left / cost_[2] : kMany);
}

}  // namespace skein::engine
