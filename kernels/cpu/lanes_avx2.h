#pragma once
// A register of eight floats: outputs of a product and what the epilogue of a tile does with them,
// or channels of a head. For files compiled with AVX2 or more.

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/simd_avx2.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

struct Ymm : avx2::Eight {
  static Vec Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  static Vec Broadcast(const float* x) { return _mm256_broadcast_ss(x); }
  static Vec Splat(float x) { return _mm256_set1_ps(x); }
  static Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return _mm256_fmadd_ps(a, b, sum); }
  static Vec WidenBF16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static Vec Exp(Vec v) { return avx2::Exp(v); }
  static Vec Sigmoid(Vec v) { return avx2::Sigmoid(v); }
  // The sums of kSums vectors.
  static constexpr int kSums = 8;
  static void SumEach(const Vec* v, float* sums) {
    _mm_storeu_ps(sums, avx2::Sum4(v[0], v[1], v[2], v[3]));
    _mm_storeu_ps(sums + 4, avx2::Sum4(v[4], v[5], v[6], v[7]));
  }
  // The first n >= 1 lanes; all when n is greater.
  static Vec LoadSome(const float* p, int64_t n) {
    return n >= kLanes ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, avx2::TailMask(n));
  }
  static void StoreSome(float* p, int64_t n, Vec v) {
    if (n >= kLanes) return _mm256_storeu_ps(p, v);
    _mm256_maskstore_ps(p, avx2::TailMask(n), v);
  }
  static Vec Activate(Vec v, Activation activation) {
    switch (activation) {
      case Activation::kTanh:
        return avx2::Tanh(v);
      case Activation::kSigmoid:
        return avx2::Sigmoid(v);
      case Activation::kReluSquared: {
        const Vec positive = _mm256_max_ps(Zero(), v);  // this order keeps NaN
        return _mm256_mul_ps(positive, positive);
      }
      case Activation::kNone:
        break;
    }
    return v;
  }
};

}  // namespace
}  // namespace skein::kernels
