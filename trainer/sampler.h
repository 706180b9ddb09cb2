#pragma once
// Which window of the data a sample reads: a pure function of the sample's number, so that resuming
// costs one integer.

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::trainer {

// The largest prime p with p = 2 (mod 3) and p <= tokens / context - 1; 0 when there is none.
// Because gcd(3, p - 1) = 1, cubing is a bijection modulo p, so i^3 visits every window once.
int64_t MagicPrime(int64_t tokens, int64_t context);

// A bijection of [0, n) chosen by `key`: a four-round Feistel network, walked until it falls
// inside.
uint64_t Permute(uint64_t index, uint64_t n, uint64_t key);

class Sampler {
 public:
  // kind: "permutation", "magic-prime", or "auto" (magic prime from 2^20 windows on, permutation
  // below). INVALID_ARGUMENT when the data is shorter than one window, or the magic prime covers
  // less than 0.9 of it.
  static absl::StatusOr<Sampler> Create(absl::string_view kind, int64_t tokens, int64_t context,
                                        uint64_t seed);

  // Where sample `index` starts; the window is context + 1 tokens. Permutation: each epoch visits
  // every window once, in an order and from a shift (below one context) of its own.
  int64_t Offset(int64_t index) const;
  int64_t windows() const { return windows_; }
  bool magic_prime() const { return prime_ != 0; }

 private:
  int64_t context_ = 0;
  int64_t windows_ = 0;  // per epoch
  int64_t shifts_ = 1;   // permutation: the shift of an epoch is below this
  int64_t prime_ = 0;    // 0: permutation
  uint64_t seed_ = 0;
};

}  // namespace skein::trainer
