#pragma once
// Loops over n floats in vectors of any width. L says what a vector is:
//   L::Vec, L::kLanes        a GCC or clang vector of so many floats
//   L::Full, L::Tail(n)      how a full vector and one of n < kLanes floats touch memory
//   L::Zero(), L::Sum(v)     the sum of its lanes
// Tails use masks, so an element's arithmetic does not depend on where in a vector it stands.
// Internal linkage on purpose: see number_format.h.

#include <cstdint>

namespace skein::kernels {
namespace {

// body(i, lanes) for i = 0, kLanes, 2 kLanes ... over n elements.
template <class L, typename Body>
inline void ForVectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + L::kLanes <= n; i += L::kLanes) body(i, typename L::Full{});
  if (i < n) body(i, typename L::Tail{n - i});
}

// sum_i value(i, lanes) over n elements with four running sums. value must be zero in missing
// lanes.
template <class L, typename Value>
inline float SumOver(int64_t n, const Value& value) {
  typename L::Vec sums[4] = {L::Zero(), L::Zero(), L::Zero(), L::Zero()};
  int64_t i = 0;
  for (; i + 4 * L::kLanes <= n; i += 4 * L::kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] += value(i + L::kLanes * j, typename L::Full{});
  }
  for (; i + L::kLanes <= n; i += L::kLanes) sums[0] += value(i, typename L::Full{});
  if (i < n) sums[1] += value(i, typename L::Tail{n - i});
  return L::Sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace skein::kernels
