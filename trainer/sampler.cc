#include "trainer/sampler.h"

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "trainer/random.h"

namespace skein::trainer {
namespace {

constexpr int64_t kMagicPrimeFrom = 1 << 20;  // windows

bool IsPrime(int64_t n) {
  if (n < 2) return false;
  for (int64_t d = 2; d * d <= n; ++d) {
    if (n % d == 0) return false;
  }
  return true;
}

uint64_t MulMod(uint64_t a, uint64_t b, uint64_t p) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b % p);
}

}  // namespace

int64_t MagicPrime(int64_t tokens, int64_t context) {
  for (int64_t p = tokens / context - 1; p >= 2; --p) {
    if (p % 3 == 2 && IsPrime(p)) return p;
  }
  return 0;
}

uint64_t Permute(uint64_t index, uint64_t n, uint64_t key) {
  int half = 1;
  while ((uint64_t{1} << (2 * half)) < n) ++half;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (Mix64(key + round, right) & mask);
      left = right;
      right = next;
    }
    index = left << half | right;
  } while (index >= n);
  return index;
}

absl::StatusOr<Sampler> Sampler::Create(absl::string_view kind, int64_t tokens, int64_t context,
                                        uint64_t seed) {
  Sampler sampler;
  sampler.context_ = context;
  sampler.seed_ = seed;
  sampler.windows_ = (tokens - 1) / context;
  if (tokens <= context) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the training data has ", tokens, " tokens, less than one window of train.context + 1 = ",
        context + 1, ": use more data or a smaller train.context"));
  }
  if (kind == "magic-prime" || (kind == "auto" && sampler.windows_ >= kMagicPrimeFrom)) {
    sampler.prime_ = MagicPrime(tokens, context);
    const double covered =
        static_cast<double>(sampler.prime_) / static_cast<double>(tokens / context);
    if (covered <= 0.9) {
      return absl::InvalidArgumentError(
          absl::StrCat("data.sampler magic-prime: the prime ", sampler.prime_, " covers only ",
                       covered, " of the ", tokens / context,
                       " windows (0.9 needed): use data.sampler=permutation for data this small"));
    }
    sampler.windows_ = sampler.prime_;
    return sampler;
  }
  if (sampler.windows_ > 1) {
    sampler.windows_ = (tokens - context) / context;
    sampler.shifts_ = context;
  }
  return sampler;
}

int64_t Sampler::Offset(int64_t index) const {
  if (prime_ != 0) {
    const uint64_t p = static_cast<uint64_t>(prime_);
    const uint64_t factor =
        static_cast<uint64_t>(static_cast<double>(prime_) * ((std::sqrt(5.0) - 1) / 2));
    const uint64_t i = static_cast<uint64_t>(index + 1) % p;
    const uint64_t window = MulMod(factor % p, MulMod(MulMod(i, i, p), i, p), p);
    return static_cast<int64_t>(window) * context_;
  }
  const uint64_t epoch = static_cast<uint64_t>(index / windows_);
  const uint64_t key = Mix64(seed_, epoch);
  const uint64_t window =
      Permute(static_cast<uint64_t>(index % windows_), static_cast<uint64_t>(windows_), key);
  const int64_t shift = static_cast<int64_t>(Mix64(key) % static_cast<uint64_t>(shifts_));
  return static_cast<int64_t>(window) * context_ + shift;
}

}  // namespace skein::trainer
