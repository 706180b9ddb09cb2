// Cross-entropy over one row of logits at a time, in AVX2.

#include <cmath>
#include <limits>

#include "kernels/train/avx2.h"
#include "kernels/train/simd_avx2.h"

namespace skein::kernels::train {
namespace {

// The largest of n floats; NaN if there is one.
float MaxOf(const float* x, int64_t n) {
  const __m256 lowest = Broadcast(-std::numeric_limits<float>::infinity());
  __m256 most = lowest, nan = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    most = _mm256_max_ps(v, most);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  }
  bool any_nan = _mm256_movemask_ps(nan) != 0;
  float lanes[8], best = -std::numeric_limits<float>::infinity();
  _mm256_storeu_ps(lanes, most);
  for (float lane : lanes) best = lane > best ? lane : best;
  for (; i < n; ++i) {
    any_nan |= x[i] != x[i];
    best = x[i] > best ? x[i] : best;
  }
  return any_nan ? std::numeric_limits<float>::quiet_NaN() : best;
}

// The first place of `value`, or 0.
int64_t FirstOf(const float* x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i += 8) {
    const Lanes l(n - i);
    // Lanes beyond the end read as 0 and may match, but only behind every real match.
    const int found =
        _mm256_movemask_ps(_mm256_cmp_ps(l.Load(x + i), Broadcast(value), _CMP_EQ_OQ));
    if (found != 0 && i + __builtin_ctz(found) < n) return i + __builtin_ctz(found);
  }
  return 0;
}

void GradientRow(const CrossEntropyArgs<float>& p, int64_t row, float max, float sum, int64_t best,
                 float* logits) {
  const float scale = (p.weights != nullptr ? p.weights[row] : 1) * p.inv_norm;
  const __m256 factor = Broadcast(scale / sum), top = Broadcast(max);
  for (int64_t v = 0; v < p.V; v += 8) {
    const Lanes l(p.V - v);
    l.Store(logits + v, factor * Exp(l.Load(logits + v) - top));
  }
  logits[p.labels[row]] -= scale;
  logits[best] += p.l2 * max;
}

}  // namespace

void Avx2CrossEntropy(const CrossEntropyArgs<float>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    float* logits = p.logits + row * p.V;
    p.ce[row] = p.max_squared[row] = 0;
    if (p.labels[row] < 0) {
      for (int64_t v = 0; v < p.V && p.gradient; ++v) logits[v] = 0;
      continue;
    }
    const float max = MaxOf(logits, p.V), label_logit = logits[p.labels[row]];
    const int64_t best = FirstOf(logits, p.V, max);
    const __m256 top = Broadcast(max);
    const float sum =
        SumOver(p.V, [&](int64_t v, const Lanes& l) { return Exp(l.Load(logits + v) - top); });
    p.ce[row] = std::log(sum) + (max - label_logit);
    p.max_squared[row] = static_cast<double>(max) * max;
    if (p.gradient) GradientRow(p, row, max, sum, best, logits);
  }
}

}  // namespace skein::kernels::train
