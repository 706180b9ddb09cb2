#pragma once
// Latencies in bounded memory, as HdrHistogram keeps them: every power of two of nanoseconds is cut
// into kParts equal parts, so a percentile is off by less than 1 / kParts of itself, from 1 ns
// to 2.4 hours, in 38 KB, however many values there are. Thread-safe and lock-free.

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>

namespace skein::client {

class LatencyHistogram {
 public:
  using Duration = std::chrono::nanoseconds;

  static constexpr int kBits = 7;
  static constexpr int kParts = 1 << kBits;

  // Negative counts as zero, more than the range as its end.
  void Record(Duration value);

  int64_t count() const { return count_.load(std::memory_order_relaxed); }
  double MeanSeconds() const;  // zero when empty
  double MaxSeconds() const;
  // The smallest value that at least this share (0..1) of all values does not exceed; zero when
  // empty. Never more than the largest value recorded.
  double QuantileSeconds(double share) const;

 private:
  static constexpr int kExponents = 36;  // above the first 2 * kParts values, which are exact
  static constexpr int kBuckets = (kExponents + 1) * kParts;
  static int BucketOf(uint64_t value);
  static uint64_t UpperEndOf(int bucket);  // the largest value in it

  std::array<std::atomic<int64_t>, kBuckets> buckets_{};
  std::atomic<int64_t> count_{0}, sum_{0}, max_{0};
};

}  // namespace skein::client
