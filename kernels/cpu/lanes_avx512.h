#pragma once
// A register of sixteen floats, and the kinds of weights whose products are fused multiply-adds of
// fp32. For files compiled with AVX-512 (F, BW, DQ, VL) or more.

#include <immintrin.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/number_format.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

struct Zmm {
  using Vec = __m512;
  static constexpr int64_t kLanes = 16;
  struct Full {
    Vec Load(const float* p) const { return _mm512_loadu_ps(p); }
    void Store(float* p, Vec v) const { _mm512_storeu_ps(p, v); }
    Vec Keep(Vec v) const { return v; }
  };
  struct Tail {
    explicit Tail(int64_t n) : mask(Mask(n)) {}
    __mmask16 mask;
    Vec Load(const float* p) const { return _mm512_maskz_loadu_ps(mask, p); }
    void Store(float* p, Vec v) const { _mm512_mask_storeu_ps(p, mask, v); }
    Vec Keep(Vec v) const { return _mm512_maskz_mov_ps(mask, v); }
  };

  static Vec Zero() { return _mm512_setzero_ps(); }
  static Vec Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  static Vec Broadcast(const float* x) { return _mm512_set1_ps(*x); }
  static Vec Splat(float x) { return _mm512_set1_ps(x); }
  static Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec MultiplyAdd(Vec a, Vec b, Vec sum) { return _mm512_fmadd_ps(a, b, sum); }
  static Vec WidenBF16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static float Sum(Vec v) {
    return avx2::Sum(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }
  // The sums of kSums vectors: halves, quarters, pairs and single lanes of two vectors are added in
  // turn, so a vector's lanes meet in the same order whichever it is.
  static constexpr int kSums = 16;
  static void SumEach(const Vec* v, float* sums) {
    Vec half[8], quarter[4];
    for (int i = 0; i < 8; ++i) {
      half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44),
                              _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
    }
    for (int i = 0; i < 4; ++i) {
      quarter[i] = _mm512_add_ps(_mm512_shuffle_f32x4(half[i], half[i + 4], 0x88),
                                 _mm512_shuffle_f32x4(half[i], half[i + 4], 0xdd));
    }
    const auto pairs = [](Vec a, Vec b) {
      return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    };
    const Vec low = pairs(quarter[0], quarter[1]), high = pairs(quarter[2], quarter[3]);
    const Vec all =
        _mm512_add_ps(_mm512_shuffle_ps(low, high, 0x44), _mm512_shuffle_ps(low, high, 0xee));
    // Quarters hold vectors 0 to 3, 8 to 11, 4 to 7 and 12 to 15.
    _mm512_storeu_ps(sums, _mm512_shuffle_f32x4(all, all, 0xd8));
  }
  // As avx2::Exp.
  static Vec Exp(Vec x) {
    x = _mm512_min_ps(Splat(88.3f), x);
    x = _mm512_max_ps(Splat(-87.3f), x);
    const Vec n = _mm512_roundscale_ps(x * Splat(1.44269504088896341f),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Vec r = _mm512_fnmadd_ps(n, Splat(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, Splat(-2.12194440e-4f), r);
    Vec p = Splat(1.9875691500e-4f);
    for (const float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                             5.0000001201e-1f}) {
      p = _mm512_fmadd_ps(p, r, Splat(next));
    }
    p = _mm512_fmadd_ps(p, r * r, r) + Splat(1.0f);
    return _mm512_scalef_ps(p, n);
  }
  static Vec Sigmoid(Vec x) { return Splat(1.0f) / (Splat(1.0f) + Exp(Zero() - x)); }
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

// What int8 weights have of 512 bits.
struct ZmmInts : Zmm {
  using Ints = __m512i;
  static Ints Splat(int32_t x) { return _mm512_set1_epi32(x); }
  static Vec Floats(Ints sum) { return _mm512_cvtepi32_ps(sum); }
  static void Quantize(const float* x, float inverse, int8_t* q) {
    for (int64_t i = 0; i < kGroupSize; i += kLanes) {
      const Ints v = _mm512_cvtps_epi32(_mm512_mul_ps(Load(x + i), _mm512_set1_ps(inverse)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtepi32_epi8(v));
    }
  }
};

// x and weights widened to 16 bits, multiplied in pairs.
template <DType kDType>
struct ZmmPairs : ZmmInts {
  using X = int16_t;
  static constexpr DType kType = kDType;
  static constexpr int kMaxRows = 12, kOffset = 0;
  static int8_t Store(int8_t q) { return q; }
  static void Load(const int8_t* w, Ints* v) {
    for (int half = 0; half < 2; ++half) {
      v[half] =
          _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + half));
    }
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
template <typename StoredType>
struct FusedKind {
  using Lanes = Zmm;
  using Stored = StoredType;
  static constexpr int64_t kStep = 1;
  static constexpr int kMaxRows = 12, kSide = 1;
  static constexpr int64_t kDepth = 128;
  static __m512 MultiplyAdd(__m512 x, __m512 w, __m512 sum) { return _mm512_fmadd_ps(x, w, sum); }
};

struct FusedF32 : FusedKind<float>, FloatWords {
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
struct FusedBF16 : FusedKind<uint16_t>, RoundedWords {
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

}  // namespace
}  // namespace skein::kernels
