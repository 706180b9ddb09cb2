#pragma once
// Vector functions of the tiers with AVX-512. In an unnamed namespace so that no other translation
// unit can get these copies.

#include <immintrin.h>

namespace skein::kernels::train {
namespace {

// e^x with relative error below 2e-7, as Exp of simd_avx2.h; its ends do not matter here: x is in
// [-88, 88]. NaN stays NaN.
[[maybe_unused]] inline __m512 Exp(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
  __m512 y = _mm512_set1_ps(1.9875691500e-4f);
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.3981999507e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(8.3334519073e-3f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(4.1665795894e-2f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(1.6666665459e-1f));
  y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(5.0000001201e-1f));
  y = _mm512_fmadd_ps(y, _mm512_mul_ps(f, f), _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(y, n);
}

// 1 / x to a unit in the last place, for x far from the ends of the range.
[[maybe_unused]] inline __m512 Reciprocal(__m512 x) {
  const __m512 guess = _mm512_rcp14_ps(x);
  return _mm512_fmadd_ps(guess, _mm512_fnmadd_ps(x, guess, _mm512_set1_ps(1.0f)), guess);
}

[[maybe_unused]] inline __m512 Sigmoid(__m512 x) {
  // Argument order keeps NaN: min and max return their second operand when one is NaN.
  const __m512 clamped =
      _mm512_max_ps(_mm512_set1_ps(-87.0f), _mm512_min_ps(_mm512_set1_ps(87.0f), x));
  return Reciprocal(
      _mm512_add_ps(_mm512_set1_ps(1.0f), Exp(_mm512_sub_ps(_mm512_setzero_ps(), clamped))));
}

// Transposes 16 x 16 lanes.
[[maybe_unused]] inline void Transpose(__m512i* r) {
  __m512i s[16];
  for (int i = 0; i < 16; i += 2) {
    s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
    }
  }
  for (int i = 0; i < 4; ++i) {  // lanes of 128 bits, of rows i, i + 4, i + 8, i + 12
    const __m512i even = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88),
                  odd = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD),
                  even2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88),
                  odd2 = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
    s[i] = _mm512_shuffle_i32x4(even, even2, 0x88);
    s[i + 4] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    s[i + 8] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    s[i + 12] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
  for (int i = 0; i < 16; ++i) r[i] = s[i];
}

}  // namespace
}  // namespace skein::kernels::train
