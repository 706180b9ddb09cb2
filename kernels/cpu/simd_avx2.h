#pragma once
// Eight floats at a time, for *_avx2.cc only. Tails use masks, so an element's arithmetic does not
// depend on where in a vector it stands.

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/vector_loops.h"

namespace skein::kernels::avx2 {
namespace {

inline __m256i TailMask(int64_t n) {  // the first n of 8 lanes
  alignas(32) static const int32_t kTable[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                 0,  0,  0,  0,  0,  0,  0,  0};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kTable + 8 - n));
}

inline float Sum(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

// For vector_loops.h. A tail's missing lanes read as zero.
struct Eight {
  using Vec = __m256;
  static constexpr int64_t kLanes = 8;
  struct Full {
    Vec Load(const float* p) const { return _mm256_loadu_ps(p); }
    void Store(float* p, Vec v) const { _mm256_storeu_ps(p, v); }
    Vec Keep(Vec v) const { return v; }  // zero in missing lanes
  };
  struct Tail {
    explicit Tail(int64_t n) : mask(TailMask(n)) {}
    __m256i mask;
    Vec Load(const float* p) const { return _mm256_maskload_ps(p, mask); }
    void Store(float* p, Vec v) const { _mm256_maskstore_ps(p, mask, v); }
    Vec Keep(Vec v) const { return _mm256_and_ps(v, _mm256_castsi256_ps(mask)); }
  };
  static Vec Zero() { return _mm256_setzero_ps(); }
  static float Sum(Vec v) { return avx2::Sum(v); }
};

template <typename Body>
inline void ForVectors(int64_t n, const Body& body) {
  kernels::ForVectors<Eight>(n, body);
}
template <typename Value>
inline float SumOver(int64_t n, const Value& value) {
  return kernels::SumOver<Eight>(n, value);
}

// The sums of four vectors.
inline __m128 Sum4(__m256 a, __m256 b, __m256 c, __m256 d) {
  const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1));
}

// 1 / sqrt(x), correctly rounded steps.
inline float InverseSqrt(float x) {
  const __m128 root = _mm_sqrt_ss(_mm_set_ss(x));
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), root));
}

// exp(x), relative error below 2e-7; saturates at exp(-87.3) and exp(88.3); NaN stays NaN (the
// order of the operands of min and max matters).
inline __m256 Exp(__m256 x) {
  x = _mm256_min_ps(_mm256_set1_ps(88.3f), x);
  x = _mm256_max_ps(_mm256_set1_ps(-87.3f), x);
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

// 1 / (1 + exp(-x)), relative error below 4e-7 for x > -87.
inline __m256 Sigmoid(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(one, _mm256_add_ps(one, Exp(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// tanh(x), relative error below 4e-7: a polynomial near zero, 1 - 2 / (exp(2|x|) + 1) elsewhere.
inline __m256 Tanh(__m256 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
  const __m256 size = _mm256_andnot_ps(sign, x);
  const __m256 z = _mm256_mul_ps(x, x);
  __m256 p = _mm256_set1_ps(-5.70498872745e-3f);
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(2.06390887954e-2f));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-5.37397155531e-2f));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(1.33314422036e-1f));
  p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-3.33332819422e-1f));
  const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(p, z), x, x);
  const __m256 e = Exp(_mm256_add_ps(size, size));
  const __m256 large =
      _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
  const __m256 near_zero = _mm256_cmp_ps(size, _mm256_set1_ps(0.625f), _CMP_LT_OQ);
  return _mm256_blendv_ps(_mm256_or_ps(large, _mm256_and_ps(sign, x)), small, near_zero);
}

// Eight columns of up to eight rows, transposed: v[k] holds column k.
inline void Transpose(__m256 (&v)[8]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
    v[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
  }
}

// Rounds to bf16, nearest even, kept as fp32; NaN stays NaN.
inline __m256 RoundToBF16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i top = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  const __m256 rounded = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
  return _mm256_and_ps(rounded, _mm256_castsi256_ps(top));
}

}  // namespace
}  // namespace skein::kernels::avx2
