#pragma once
// Passes over one row of logits, four floats at a time in the instruction set that every x86-64
// has, or eight with AVX2; the results are the same bit for bit. Sampled tokens and
// log-probabilities come from here on every tier, so they depend on the tier through the logits
// alone.

#include <cstdint>

namespace skein::kernels {

// How many of some elements are >= a threshold, and the sum of their weights.
struct Above {
  int64_t count = 0;
  double mass = 0;
};

struct RowMath {
  // The largest of x[0..n); NaN when one of them is.
  float (*max)(const float* x, int32_t n);
  // The lowest index with x[i] == value; n when there is none.
  int32_t (*find)(const float* x, int32_t n, float value);
  // sum_i exp(x[i] - max), max >= every x[i].
  double (*sum_exp)(const float* x, int32_t n, float max);
  // weights[i] = exp((x[i] - max) * scale), 0 where that is below the smallest normal float.
  // max >= every x[i], scale >= 0. Relative error below 4e-7.
  void (*exp_weights)(const float* x, int32_t n, float max, float scale, float* weights);
  // Over x[begin..end).
  Above (*sum_above)(const float* x, const float* weights, int32_t begin, int32_t end,
                     float threshold);
};
const RowMath& PlainRowMath();
namespace avx2 {
const RowMath* FastRowMath();
}

// What log-softmax needs to know about a row.
struct RowSummary {
  bool valid = false;  // no NaN, no +infinity, and something above -infinity
  bool has_nan = false;
  int32_t arg_max = 0;  // the lowest index that holds max
  float max = 0;
  double log_sum = 0;  // log sum_i exp(x[i] - max)
};
RowSummary SummarizeRow(const RowMath& math, const float* x, int32_t n);

// log-softmax(x)[i] of the row that `s` was made of.
inline float LogProb(const RowSummary& s, float x_i) {
  return static_cast<float>(static_cast<double>(x_i) - s.max - s.log_sum);
}

}  // namespace skein::kernels
