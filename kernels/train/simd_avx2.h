#pragma once
// Vector functions of the AVX2 tier. In an unnamed namespace so that no other translation unit can
// get these copies.

#include <immintrin.h>

#include <cstdint>

namespace skein::kernels::train {
namespace {

// e^x with relative error below 2e-7; 0 below -87.3, saturates above 88.3; NaN stays NaN.
[[maybe_unused]] inline __m256 Exp(__m256 x) {
  // Argument order keeps NaN: min and max return their second operand when one is NaN.
  const __m256 clamped =
      _mm256_max_ps(_mm256_set1_ps(-87.3f), _mm256_min_ps(_mm256_set1_ps(88.3f), x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(clamped, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), clamped);
  f = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), f);
  __m256 y = _mm256_set1_ps(1.9875691500e-4f);
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.3981999507e-3f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(8.3334519073e-3f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(4.1665795894e-2f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(1.6666665459e-1f));
  y = _mm256_fmadd_ps(y, f, _mm256_set1_ps(5.0000001201e-1f));
  y = _mm256_fmadd_ps(y, _mm256_mul_ps(f, f), _mm256_add_ps(f, _mm256_set1_ps(1.0f)));
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(exponent));
  const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LT_OQ);
  const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
  return _mm256_blendv_ps(_mm256_andnot_ps(tiny, y), x, nan);
}

[[maybe_unused]] inline __m256 Sigmoid(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f);
  return _mm256_div_ps(one, _mm256_add_ps(one, Exp(_mm256_sub_ps(_mm256_setzero_ps(), x))));
}

// Up to eight neighbouring floats; those beyond the end of an array read as zero and are not
// written.
class Lanes {
 public:
  // `rest` elements are left, at least one.
  explicit Lanes(int64_t rest) : full_(rest >= 8) {
    if (!full_) {
      const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
      mask_ = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(rest)), index);
    }
  }
  __m256 Load(const float* p) const {
    return full_ ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, mask_);
  }
  void Store(float* p, __m256 x) const {
    if (full_) {
      _mm256_storeu_ps(p, x);
    } else {
      _mm256_maskstore_ps(p, mask_, x);
    }
  }
  void Add(float* p, __m256 x) const { Store(p, Load(p) + x); }
  // x with zeros in the lanes beyond the end.
  __m256 Keep(__m256 x) const { return full_ ? x : _mm256_and_ps(x, _mm256_castsi256_ps(mask_)); }

 private:
  bool full_;
  __m256i mask_ = _mm256_setzero_si256();
};

[[maybe_unused]] inline __m256 Broadcast(float x) { return _mm256_set1_ps(x); }

[[maybe_unused]] inline float SumLanes(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

// Sum over i in [0, n) of f(i, lanes), eight at a time; f's lanes beyond the end do not count. Four
// running sums hide the latency of an addition.
template <class F>
inline float SumOver(int64_t n, const F& f) {
  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
                    _mm256_setzero_ps()};
  int64_t i = 0;
  const Lanes full(8);
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; ++j) sums[j] += f(i + 8 * j, full);
  }
  for (int j = 0; i < n; i += 8, j = (j + 1) % 4) {
    const Lanes lanes(n - i);
    sums[j] += lanes.Keep(f(i, lanes));
  }
  return SumLanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

}  // namespace
}  // namespace skein::kernels::train
