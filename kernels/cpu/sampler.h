#pragma once
// Sampling of a whole batch, the same on every tier. For one row, with ids in [0, vocab):
//   1. key = logit + bias (-infinity bans; a clear mask bit and ids >= vocab ban too).
//   2. for tokens in `counts`: key = key > 0 ? key / repetition : key * repetition; then
//      key -= presence + frequency * count.
//   3. temperature < 1e-6: the largest key, lowest id among equals. Otherwise p = softmax(key /
//   temperature).
//   4. filters, over ids ordered by (key falling, id rising): top_k keeps the first k; top_p the
//   shortest beginning
//      of these whose share of their mass is >= top_p (at least one id); min_p those with p >=
//      min_p * max p. With top_p_before_temperature the filters see softmax(key).
//   5. the first id, rising, at which the cumulative mass of the kept ids exceeds u * (their mass),
//   where u is
//      PhiloxUniform(seed, position).
// Ids outside [0, vocab) in `counts` and `bias` have no effect. A key that becomes NaN or +infinity
// (an infinite bias) gives token -1, as such a logit does.

#include "kernels/ops.h"

namespace skein::kernels {

void SampleRows(const SampleParams& p, Stream& stream);
void ScoreRows(const ScoreParams& p, Stream& stream);

// The same with AVX2: faster, and bit for bit equal.
namespace avx2 {
void SampleRows(const SampleParams& p, Stream& stream);
void ScoreRows(const ScoreParams& p, Stream& stream);
}  // namespace avx2

}  // namespace skein::kernels
