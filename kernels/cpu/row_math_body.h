#pragma once
// The passes of row_math.h in vectors of kLanes floats, which the file that includes this defines
// before. Sums run in sixteen lanes whatever kLanes is, and no multiply-add is fused, so every
// instruction set gives the same bits.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cpu/row_math.h"

namespace skein::kernels {
namespace {

// GCC and clang vectors: arithmetic by element, comparisons give all-ones or zero.
typedef float F __attribute__((vector_size(4 * kLanes)));
typedef int32_t I __attribute__((vector_size(4 * kLanes)));

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kParts = 16 / kLanes;  // vectors that make sixteen lanes
// Float sums run over at most this many elements before they are added to a double.
constexpr int32_t kBlock = 16 * 16;

inline F Splat(float x) { return F{} + x; }

inline F Load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline F Select(I mask, F yes, F no) {
  return reinterpret_cast<F>((mask & reinterpret_cast<I>(yes)) | (~mask & reinterpret_cast<I>(no)));
}

inline bool Any(I mask) {
  int32_t any = 0;
  for (int32_t i = 0; i < kLanes; ++i) any |= mask[i];
  return any != 0;
}

// In one order for every kLanes.
inline double Sum(const F (&lanes)[kParts]) {
  float values[16];
  std::memcpy(values, lanes, sizeof values);
  double sum = 0;
  for (int i = 0; i < 4; ++i)
    sum += (double{values[i]} + values[i + 4]) + (double{values[i + 8]} + values[i + 12]);
  return sum;
}

// exp(x) for x <= 0; 0 below the normal range. Cody-Waite reduction to |r| <= ln(2)/2 and a
// polynomial.
inline F ExpNegative(F x) {
  const F kMagic = Splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const I in_range = x > Splat(-87.3f);
  x = Select(in_range, x, Splat(0.0f));
  const F shifted = x * Splat(1.44269504088896341f) + kMagic;
  const F n = shifted - kMagic;
  const F r = (x - n * Splat(0.693359375f)) - n * Splat(-2.12194440e-4f);
  // Estrin's order: short chains, so that several vectors are under way at once.
  const F r2 = r * r;
  const F top = Splat(1.9875691500e-4f) * r + Splat(1.3981999507e-3f);
  const F middle = Splat(8.3334519073e-3f) * r + Splat(4.1665795894e-2f);
  const F bottom = Splat(1.6666665459e-1f) * r + Splat(5.0000001201e-1f);
  const F p = ((top * (r2 * r2) + middle * r2) + bottom) * r2 + (r + Splat(1.0f));
  const I exponent = reinterpret_cast<I>(shifted) << 23;
  const F result = reinterpret_cast<F>(reinterpret_cast<I>(p) + exponent);
  return Select(in_range, result, Splat(0.0f));
}

// The sixteen elements from x[i] on; those at n and beyond are replaced.
inline void LoadSixteen(const float* x, int32_t i, int32_t n, float missing, F (&v)[kParts]) {
  if (i + 16 <= n) {
    for (int32_t j = 0; j < kParts; ++j) v[j] = Load(x + i + j * kLanes);
    return;
  }
  float values[16];
  for (int32_t j = 0; j < 16; ++j) values[j] = i + j < n ? x[i + j] : missing;
  std::memcpy(v, values, sizeof values);
}

double SumExp(const float* x, int32_t n, float max) {
  const F top = Splat(max);
  double sum = 0;
  for (int32_t begin = 0; begin < n; begin += kBlock) {
    F lanes[kParts] = {};
    const int32_t end = n - begin < kBlock ? n : begin + kBlock;
    for (int32_t i = begin; i < end; i += 16) {
      F v[kParts];
      LoadSixteen(x, i, end, -kInfinity, v);
      for (int32_t j = 0; j < kParts; ++j) lanes[j] += ExpNegative(v[j] - top);
    }
    sum += Sum(lanes);
  }
  return sum;
}

float Max(const float* x, int32_t n) {
  F max[kParts];
  I nan[kParts] = {};
  for (F& v : max) v = Splat(-kInfinity);
  for (int32_t i = 0; i < n; i += 16) {
    F v[kParts];
    LoadSixteen(x, i, n, -kInfinity, v);
    for (int32_t j = 0; j < kParts; ++j) {
      max[j] = Select(v[j] > max[j], v[j], max[j]);
      nan[j] |= v[j] != v[j];
    }
  }
  float largest = -kInfinity;
  for (int32_t j = 0; j < kParts; ++j) {
    if (Any(nan[j])) return std::numeric_limits<float>::quiet_NaN();
    for (int32_t i = 0; i < kLanes; ++i) largest = max[j][i] > largest ? max[j][i] : largest;
  }
  return largest;
}

int32_t Find(const float* x, int32_t n, float value) {
  const F wanted = Splat(value);
  int32_t i = 0;
  for (; i + 16 <= n; i += 16) {
    I hit = {};
    for (int32_t j = 0; j < kParts; ++j) hit |= Load(x + i + j * kLanes) == wanted;
    if (Any(hit)) break;
  }
  while (i < n && x[i] != value) ++i;
  return i;
}

void ExpWeights(const float* x, int32_t n, float max, float scale, float* weights) {
  const F top = Splat(max), factor = Splat(scale);
  for (int32_t i = 0; i < n; i += 16) {
    F v[kParts];
    LoadSixteen(x, i, n, -kInfinity, v);
    for (int32_t j = 0; j < kParts; ++j) v[j] = ExpNegative((v[j] - top) * factor);
    std::memcpy(weights + i, v, sizeof(float) * (n - i < 16 ? n - i : 16));
  }
}

Above SumAbove(const float* x, const float* weights, int32_t begin, int32_t end, float threshold) {
  Above above;
  const F least = Splat(threshold);
  for (int32_t block = begin; block < end; block += kBlock) {
    const int32_t last = end - block < kBlock ? end : block + kBlock;
    F mass[kParts] = {};
    I minus_count[kParts] = {};
    for (int32_t i = block; i < last; i += 16) {
      F v[kParts], w[kParts];
      LoadSixteen(x, i, last, std::numeric_limits<float>::quiet_NaN(), v);
      LoadSixteen(weights, i, last, 0.0f, w);
      for (int32_t j = 0; j < kParts; ++j) {
        const I keep = v[j] >= least;
        minus_count[j] += keep;
        mass[j] += reinterpret_cast<F>(keep & reinterpret_cast<I>(w[j]));
      }
    }
    for (int32_t j = 0; j < kParts; ++j) {
      for (int32_t i = 0; i < kLanes; ++i) above.count -= minus_count[j][i];
    }
    above.mass += Sum(mass);
  }
  return above;
}

constexpr RowMath kMath = {Max, Find, SumExp, ExpWeights, SumAbove};

}  // namespace
}  // namespace skein::kernels
