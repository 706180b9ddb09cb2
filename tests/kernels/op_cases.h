#pragma once
// Random, poisoned inputs for every operator, and comparison. Test-only.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/number_format.h"
#include "kernels/cpu/plain.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tiers.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::kernels {

// 64-byte aligned floats, filled with NaN: an element that an operator forgets to write shows.
class Floats {
 public:
  Floats() = default;
  explicit Floats(int64_t n) : size_(n), data_(Allocate(n)) {
    std::fill_n(data_.get(), n, std::numeric_limits<float>::quiet_NaN());
  }
  Floats(const Floats& o) : size_(o.size_), data_(Allocate(o.size_)) {
    if (size_ > 0) std::memcpy(data_.get(), o.data_.get(), 4 * size_);
  }
  Floats(Floats&&) = default;
  Floats& operator=(Floats o) {
    std::swap(size_, o.size_);
    std::swap(data_, o.data_);
    return *this;
  }
  float* get() const { return data_.get(); }
  int64_t size() const { return size_; }
  float& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Freer {
    void operator()(float* p) const { std::free(p); }
  };
  static float* Allocate(int64_t n) {
    return static_cast<float*>(std::aligned_alloc(64, (4 * n + 64) / 64 * 64));
  }
  int64_t size_ = 0;
  std::unique_ptr<float, Freer> data_;
};

inline Floats RandomFloats(int64_t n, std::mt19937& rng, float scale = 1.0f, float shift = 0.0f) {
  std::normal_distribution<float> normal(shift, scale);
  Floats out(n);
  for (int64_t i = 0; i < n; ++i) out[i] = normal(rng);
  return out;
}

// A stream on an executor of its own.
class TestStream final : public Stream {
 public:
  explicit TestStream(int threads) : pool_(threads) {}
  void Synchronize() override {}
  Executor& executor() override { return pool_; }

 private:
  ThreadPool pool_;
};

// |got - want| <= tolerance * (1 + |want|) everywhere; a NaN in `got` fails.
inline void ExpectClose(const Floats& got, const Floats& want, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (int64_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(double{got[i]} - want[i]);
    ASSERT_LE(error, tolerance * (1 + std::abs(want[i])))
        << what << " at " << i << ": got " << got[i] << ", want " << want[i];
  }
}

inline void ExpectSameBits(const Floats& got, const Floats& want, const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (int64_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::memcmp(&got[i], &want[i], 4), 0)
        << what << " at " << i << ": got " << got[i] << ", want " << want[i];
  }
}

// The ragged batch of rows with these lengths; row r uses slot slot_of[r].
class RaggedCase {
 public:
  RaggedCase(const std::vector<int>& lengths, std::vector<int32_t> slots)
      : slots_(std::move(slots)) {
    offsets_.push_back(0);
    for (size_t r = 0; r < lengths.size(); ++r) {
      offsets_.push_back(offsets_.back() + lengths[r]);
      for (int i = 0; i < lengths[r]; ++i) row_of_.push_back(static_cast<int32_t>(r));
    }
  }
  Ragged view() const {
    Ragged b;
    b.num_rows = static_cast<int32_t>(slots_.size());
    b.num_tokens = offsets_.back();
    b.offsets = offsets_.data();
    b.slots = slots_.data();
    b.row_of = row_of_.data();
    return b;
  }

 private:
  std::vector<int32_t> offsets_, slots_, row_of_;
};

// The tiers that this machine can run.
inline std::vector<const Tier*> MachineTiers() {
  std::vector<const Tier*> tiers;
  for (const Tier& tier : AllTiers()) {
    if (tier.available()) tiers.push_back(&tier);
  }
  return tiers;
}

// A matrix packed by one tier.
class Packed {
 public:
  Packed(const OpTable& ops, const Floats& source, int O, int K, DType dtype, Stream& stream,
         bool transposed = false)
      : bytes_((ops.packed_bytes(O, K, dtype) + 3) / 4) {
    PackParams p;
    p.source = source.get();
    p.transposed = transposed;
    p.O = O;
    p.K = K;
    p.dtype = dtype;
    p.out = bytes_.get();
    ops.pack(p, stream);
    view_ = {O, K, dtype, bytes_.get()};
  }
  const PackedMatrix& view() const { return view_; }

 private:
  Floats bytes_;
  PackedMatrix view_;
};

}  // namespace skein::kernels
