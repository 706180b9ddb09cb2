#include "kernels/cpu/row_math.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace skein::kernels {
namespace {

// GCC and clang vectors: arithmetic by element, comparisons give all-ones or zero.
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Float sums run over at most this many vectors before they are added to a double.
constexpr int32_t kBlock = 16 * 4;

F4 Splat(float x) { return F4{x, x, x, x}; }

F4 Load(const float* p) {
  F4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The last n (1..3) floats of a row, the missing ones replaced.
F4 LoadTail(const float* p, int32_t n, float missing) {
  F4 v = Splat(missing);
  for (int32_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

F4 Select(I4 mask, F4 yes, F4 no) {
  return reinterpret_cast<F4>((mask & reinterpret_cast<I4>(yes)) |
                              (~mask & reinterpret_cast<I4>(no)));
}

double Sum(F4 v) { return (double{v[0]} + v[1]) + (double{v[2]} + v[3]); }

// exp(x) for x <= 0; 0 below the normal range. Cody-Waite reduction to |r| <= ln(2)/2 and a
// polynomial.
F4 ExpNegative(F4 x) {
  const F4 kMagic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const I4 in_range = x > Splat(-87.3f);
  x = Select(in_range, x, Splat(0.0f));
  const F4 shifted = x * Splat(1.44269504088896341f) + kMagic;
  const F4 n = shifted - kMagic;
  const F4 r = (x - n * Splat(0.693359375f)) - n * Splat(-2.12194440e-4f);
  // Estrin's order: short chains, so that several vectors are under way at once.
  const F4 r2 = r * r;
  const F4 top = Splat(1.9875691500e-4f) * r + Splat(1.3981999507e-3f);
  const F4 middle = Splat(8.3334519073e-3f) * r + Splat(4.1665795894e-2f);
  const F4 bottom = Splat(1.6666665459e-1f) * r + Splat(5.0000001201e-1f);
  const F4 p = ((top * (r2 * r2) + middle * r2) + bottom) * r2 + (r + Splat(1.0f));
  const I4 exponent = reinterpret_cast<I4>(shifted) << 23;
  const F4 result = reinterpret_cast<F4>(reinterpret_cast<I4>(p) + exponent);
  return Select(in_range, result, Splat(0.0f));
}

// Calls visit(vector) on all of x[0..n).
template <typename Visit>
void ForEach(const float* x, int32_t n, float missing, const Visit& visit) {
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) visit(Load(x + i));
  if (i < n) visit(LoadTail(x + i, n - i, missing));
}

double SumExp(const float* x, int32_t n, float max) {
  const F4 top = Splat(max);
  double sum = 0;
  for (int32_t begin = 0; begin < n; begin += kBlock) {
    F4 block = Splat(0.0f);
    ForEach(x + begin, n - begin < kBlock ? n - begin : kBlock, -kInfinity,
            [&](F4 v) { block += ExpNegative(v - top); });
    sum += Sum(block);
  }
  return sum;
}

}  // namespace

float RowMax(const float* x, int32_t n) {
  F4 max[4] = {Splat(-kInfinity), Splat(-kInfinity), Splat(-kInfinity), Splat(-kInfinity)};
  I4 nan = {0, 0, 0, 0};
  const auto take = [&nan](F4 v, F4* top) {
    *top = Select(v > *top, v, *top);
    nan |= v != v;
  };
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int32_t j = 0; j < 4; ++j) take(Load(x + i + 4 * j), &max[j]);
  }
  ForEach(x + i, n - i, -kInfinity, [&](F4 v) { take(v, &max[0]); });
  if ((nan[0] | nan[1] | nan[2] | nan[3]) != 0) return std::numeric_limits<float>::quiet_NaN();
  for (int32_t j = 1; j < 4; ++j) take(max[j], &max[0]);
  return std::fmax(std::fmax(max[0][0], max[0][1]), std::fmax(max[0][2], max[0][3]));
}

int32_t FindValue(const float* x, int32_t n, float value) {
  const F4 wanted = Splat(value);
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const I4 hit = (Load(x + i) == wanted) | (Load(x + i + 4) == wanted) |
                   (Load(x + i + 8) == wanted) | (Load(x + i + 12) == wanted);
    if ((hit[0] | hit[1] | hit[2] | hit[3]) != 0) break;
  }
  while (i < n && x[i] != value) ++i;
  return i;
}

RowSummary SummarizeRow(const float* x, int32_t n) {
  RowSummary s;
  s.max = RowMax(x, n);
  s.has_nan = std::isnan(s.max);
  s.valid = std::isfinite(s.max);
  if (s.has_nan) return s;
  s.arg_max = FindValue(x, n, s.max);
  if (s.valid) s.log_sum = std::log(SumExp(x, n, s.max));
  return s;
}

void ExpWeights(const float* x, int32_t n, float max, float scale, float* weights) {
  const F4 top = Splat(max), factor = Splat(scale);
  int32_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const F4 w = ExpNegative((Load(x + i) - top) * factor);
    std::memcpy(weights + i, &w, sizeof w);
  }
  if (i < n) {
    const F4 w = ExpNegative((LoadTail(x + i, n - i, -kInfinity) - top) * factor);
    for (int32_t j = i; j < n; ++j) weights[j] = w[j - i];
  }
}

Above SumAbove(const float* x, const float* weights, int32_t begin, int32_t end, float threshold) {
  Above above;
  const F4 least = Splat(threshold);
  for (int32_t block = begin; block < end; block += kBlock) {
    const int32_t last = end - block < kBlock ? end : block + kBlock;
    F4 mass = Splat(0.0f);
    I4 minus_count = {0, 0, 0, 0};
    int32_t i = block;
    for (; i + 4 <= last; i += 4) {
      const I4 keep = Load(x + i) >= least;
      minus_count += keep;
      mass += reinterpret_cast<F4>(keep & reinterpret_cast<I4>(Load(weights + i)));
    }
    for (; i < last; ++i) {
      const bool keep = x[i] >= threshold;
      above.count += keep;
      above.mass += keep ? weights[i] : 0.0f;
    }
    above.count -= minus_count[0] + minus_count[1] + minus_count[2] + minus_count[3];
    above.mass += Sum(mass);
  }
  return above;
}

}  // namespace skein::kernels
