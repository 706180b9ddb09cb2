#pragma once
// A register of sixteen outputs of a product, and the kinds of weights whose products are fused
// multiply-adds of fp32. For files compiled with AVX-512 (F, BW, DQ, VL) or more.

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/number_format.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

struct Zmm {
  using Vec = __m512;
  static constexpr int64_t kLanes = 16;

  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Broadcast(const float* x) { return _mm512_set1_ps(*x); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Vec WidenBF16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // The first n >= 1 lanes; all when n is greater.
  static __mmask16 Mask(int64_t n) {
    return static_cast<__mmask16>(n >= kLanes ? 0xffff : (1 << n) - 1);
  }
  static Vec LoadSome(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(Mask(n), p); }
  static void StoreSome(float* p, int64_t n, Vec v) { _mm512_mask_storeu_ps(p, Mask(n), v); }
  static Vec Activate(Vec v, Activation activation) {
    const __m256 low = Ymm::Activate(_mm512_castps512_ps256(v), activation);
    const __m256 high = Ymm::Activate(_mm512_extractf32x8_ps(v, 1), activation);
    return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
  }
};

struct FloatWords {
  static __m256 Words(const float* x) { return _mm256_loadu_ps(x); }
  static float Word(const float* x, int64_t) { return *x; }
};
struct RoundedWords {
  static __m256 Words(const float* x) { return avx2::RoundToBF16(_mm256_loadu_ps(x)); }
  static float Word(const float* x, int64_t) { return FromBF16(ToBF16(*x)); }
};

// 24 of the 32 registers accumulate.
template <DType kDType, typename StoredType>
struct FusedKind {
  using Lanes = Zmm;
  using Stored = StoredType;
  static constexpr DType kType = kDType;
  static constexpr int64_t kStep = 1;
  static constexpr int kMaxRows = 12, kSide = 1;
  static constexpr int64_t kDepth = 128;
  static __m512 MultiplyAdd(__m512 x, __m512 w, __m512 sum) { return _mm512_fmadd_ps(x, w, sum); }
};

struct FusedF32 : FusedKind<DType::kF32, float>, FloatWords {
  static void Load(const float* w, __m512* v) {
    v[0] = _mm512_load_ps(w);
    v[1] = _mm512_load_ps(w + 16);
  }
  static void Store(const float (*values)[32], float* out) {
    for (int j = 0; j < 32; ++j) out[j] = values[0][j];
  }
};

// Output j in the low half of 32-bit word j, output 16 + j in the high half: a shift and a mask
// widen them.
struct FusedBF16 : FusedKind<DType::kBF16, uint16_t>, RoundedWords {
  static constexpr int64_t kDepth = 256;
  static void Load(const uint16_t* w, __m512* v) {
    const __m512i both = _mm512_load_si512(w);
    v[0] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    v[1] = _mm512_castsi512_ps(
        _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
  static void Store(const float (*values)[32], uint16_t* out) {
    for (int j = 0; j < 32; ++j) out[j < 16 ? 2 * j : 2 * (j - 16) + 1] = ToBF16(values[0][j]);
  }
};

// What int8 widens to: fp32 weights with rounded x.
struct FusedWidened : FusedF32 {
  static __m256 Words(const float* x) { return RoundedWords::Words(x); }
  static float Word(const float* x, int64_t n) { return RoundedWords::Word(x, n); }
};

struct FusedI8 : FusedKind<DType::kI8, int8_t>, RoundedWords {
  using Wide = FusedWidened;
  static void Load(const int8_t* w, __m512* v) {
    for (int half = 0; half < 2; ++half) {
      const __m128i q = _mm_load_si128(reinterpret_cast<const __m128i*>(w + 16 * half));
      v[half] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q));
    }
  }
  static void Widen(const int8_t* w, float* out) {
    __m512 v[2];
    Load(w, v);
    _mm512_store_ps(out, v[0]);
    _mm512_store_ps(out + 16, v[1]);
  }
  static void Store(const float (*values)[32], int8_t* out) {
    for (int j = 0; j < 32; ++j) out[j] = static_cast<int8_t>(values[0][j]);
  }
};

}  // namespace
}  // namespace skein::kernels
