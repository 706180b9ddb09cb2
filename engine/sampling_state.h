#pragma once
// What one request's next token is sampled with: options merged once, decayed penalty counts, place
// in the draw, what a constraint allows. Engine thread only once made.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/constraint.h"
#include "engine/request.h"
#include "kernels/ops.h"

namespace skein::engine {

class SamplingState {
 public:
  SamplingState() = default;
  // `mask` (null: all tokens allowed) must outlive this; see kernels::SampleRow.
  SamplingState(const SamplingOptions& sampling, const StoppingOptions& stopping,
                bool want_logprobs, int32_t top_logprobs, uint64_t seed, const uint32_t* mask);

  // Before the first Accept. Penalties count these tokens too, oldest first; the count of a token
  // is the sum of decay^(tokens since) over its places. Called once.
  void CountBefore(std::span<const int32_t> earlier, std::span<const int32_t> input);
  // Before the first Accept: only what it allows, and `mask` allows too, is sampled.
  void Constrain(std::unique_ptr<Constraint> constraint);
  // Before the first Accept: the same with another seed.
  SamplingState Clone(uint64_t seed) const;
  // False: the constraint allows nothing here.
  bool some_allowed() const { return some_allowed_; }

  // The row points into this object: valid until the next Accept.
  void Fill(kernels::SampleRow* row) const;
  void Accept(int32_t token);
  uint64_t seed() const { return row_.seed; }

 private:
  void UpdateAllowed();

  kernels::SampleRow row_;  // but for bias, counts and, with a constraint, mask
  float penalty_decay_ = 1.0f;
  bool penalties_ = false;
  int32_t min_tokens_ = 0;
  std::vector<kernels::TokenValue> bias_;  // logit biases and bans, distinct tokens
  std::vector<kernels::TokenValue>
      early_bias_;                           // the same and whatever would stop, before min_tokens
  std::vector<kernels::TokenValue> counts_;  // only when there are penalties
  std::unique_ptr<Constraint> constraint_;
  std::vector<uint32_t> allowed_;  // by the constraint and by row_.mask
  bool some_allowed_ = true;
};

// INVALID_ARGUMENT names the field. `V` rows of the head, `valid` ids that may be sampled at all.
absl::Status CheckSampling(const SamplingOptions& sampling, const StoppingOptions& stopping,
                           int32_t V, int64_t valid);

}  // namespace skein::engine
