#pragma once
// Zeroed, 64-byte aligned scratch memory of one kernel call. In an unnamed namespace on purpose:
// tiers compile this with different instruction sets, and the linker must not merge their copies.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace skein::kernels::train {
namespace {

template <class Real>
class Scratch {
 public:
  explicit Scratch(int64_t n) {
    const size_t bytes = (static_cast<size_t>(n) * sizeof(Real) + 63) / 64 * 64;
    data_ = static_cast<Real*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  Real* data() { return data_; }
  Real& operator[](int64_t i) { return data_[i]; }
  // The next `n` elements; rounded up so that each part stays aligned. The sum of parts must fit.
  Real* Take(int64_t n) {
    Real* part = data_ + used_;
    used_ += (n + 15) / 16 * 16;
    return part;
  }

 private:
  Real* data_ = nullptr;
  int64_t used_ = 0;
};

}  // namespace
}  // namespace skein::kernels::train
