#include "client/load_histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace skein::client {

// Values below kParts have a bucket each. Above: `shift` bits are cut off so that kBits + 1 remain,
// the highest of which is one; the others are the place within the power of two.
int LatencyHistogram::BucketOf(uint64_t value) {
  const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - (kBits + 1));
  return std::min(shift * kParts + static_cast<int>(value >> shift), kBuckets - 1);
}

uint64_t LatencyHistogram::UpperEndOf(int bucket) {
  if (bucket < 2 * kParts) return bucket;
  const int shift = bucket / kParts - 1;
  const uint64_t top = static_cast<uint64_t>(bucket - shift * kParts);
  return ((top + 1) << shift) - 1;
}

void LatencyHistogram::Record(Duration value) {
  const int64_t ns = std::max<int64_t>(0, value.count());
  buckets_[BucketOf(static_cast<uint64_t>(ns))].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(ns, std::memory_order_relaxed);
  int64_t seen = max_.load(std::memory_order_relaxed);
  while (ns > seen && !max_.compare_exchange_weak(seen, ns, std::memory_order_relaxed)) {
  }
  count_.fetch_add(1, std::memory_order_relaxed);
}

double LatencyHistogram::MeanSeconds() const {
  const int64_t n = count();
  return n == 0 ? 0 : static_cast<double>(sum_.load()) * 1e-9 / static_cast<double>(n);
}

double LatencyHistogram::MaxSeconds() const { return static_cast<double>(max_.load()) * 1e-9; }

double LatencyHistogram::QuantileSeconds(double share) const {
  const int64_t n = count();
  if (n == 0) return 0;
  const auto rank = std::clamp<int64_t>(
      static_cast<int64_t>(std::ceil(share * static_cast<double>(n) - 1e-9)), 1, n);
  int64_t below = 0;
  for (int bucket = 0; bucket < kBuckets; ++bucket) {
    below += buckets_[bucket].load(std::memory_order_relaxed);
    if (below >= rank) {
      return std::min(static_cast<double>(UpperEndOf(bucket)) * 1e-9, MaxSeconds());
    }
  }
  return MaxSeconds();
}

}  // namespace skein::client
