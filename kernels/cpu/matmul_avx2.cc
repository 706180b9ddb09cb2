// Matmul with AVX2: panels of 16 outputs, fused multiply-adds; bf16 weights are widened to fp32 in
// registers, int8 ones to 16 bits. See matmul_vector.h and matmul_int8_vector.h.

#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/matmul_int8_vector.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/simd_avx2.h"

namespace skein::kernels::avx2 {
namespace {

struct FloatWords {
  static __m256 Words(const float* x) { return _mm256_loadu_ps(x); }
  static float Word(const float* x, int64_t) { return *x; }
};
struct RoundedWords {
  static __m256 Words(const float* x) { return RoundToBF16(_mm256_loadu_ps(x)); }
  static float Word(const float* x, int64_t) { return FromBF16(ToBF16(*x)); }
};

// 12 of the 16 registers accumulate.
template <typename StoredType>
struct Kind {
  using Lanes = Ymm;
  using Stored = StoredType;
  static constexpr int64_t kStep = 1;
  static constexpr int kMaxRows = 6, kSide = 1;
  static constexpr int64_t kDepth = 256;
  static __m256 MultiplyAdd(__m256 x, __m256 w, __m256 sum) { return _mm256_fmadd_ps(x, w, sum); }
};

struct F32 : Kind<float>, FloatWords {
  static void Load(const float* w, __m256* v) {
    v[0] = _mm256_load_ps(w);
    v[1] = _mm256_load_ps(w + 8);
  }
  static void Store(const float (*values)[16], float* out) {
    for (int j = 0; j < 16; ++j) out[j] = values[0][j];
  }
};

// Output j in the low half of 32-bit word j, output 8 + j in the high half: a shift and a mask
// widen them.
struct BF16 : Kind<uint16_t>, RoundedWords {
  static void Load(const uint16_t* w, __m256* v) {
    const __m256i both = _mm256_load_si256(reinterpret_cast<const __m256i*>(w));
    v[0] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    v[1] = _mm256_castsi256_ps(
        _mm256_and_si256(both, _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u))));
  }
  static void Store(const float (*values)[16], uint16_t* out) {
    for (int j = 0; j < 16; ++j) out[j < 8 ? 2 * j : 2 * (j - 8) + 1] = ToBF16(values[0][j]);
  }
};

// x and weights widened to 16 bits, products of pairs added to 32.
template <DType kDType>
struct Int8 : Ymm {
  using Ints = __m256i;
  using X = int16_t;
  static constexpr DType kType = kDType;
  static constexpr int kMaxRows = 6, kOffset = 0;
  static int8_t Store(int8_t q) { return q; }
  static void Load(const int8_t* w, Ints* v) {
    for (int half = 0; half < 2; ++half)
      v[half] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + half));
  }
  static Ints Splat(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints Dot(Ints sum, Ints w, Ints x) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
  }
  static Vec Floats(Ints sum) { return _mm256_cvtepi32_ps(sum); }
  static void Quantize(const float* x, float inverse, int8_t* q) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t i = 0; i < kGroupSize; i += 32) {
      __m256i v[4];
      for (int j = 0; j < 4; ++j) {
        v[j] = _mm256_cvtps_epi32(
            _mm256_mul_ps(_mm256_load_ps(x + i + 8 * j), _mm256_set1_ps(inverse)));
      }
      const __m256i bytes =
          _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i),
                          _mm256_permutevar8x32_epi32(bytes, order));
    }
  }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<BF16>{});
    if (dtype == DType::kI8) return f(Int8VectorKernel<Int8<DType::kI8>>{});
    if (dtype == DType::kI8A8) return f(Int8VectorKernel<Int8<DType::kI8A8>>{});
    return f(VectorKernel<F32>{});
  }
};

}  // namespace

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) { return BytesOfPacked<Tier>(O, K, dtype); }
void Pack(const PackParams& p, Stream& stream) { RunPack<Tier>(p, stream); }
void Matmul(const MatmulParams* params, int n, Stream& stream) {
  RunMatmul<Tier>(params, n, stream);
}

}  // namespace skein::kernels::avx2
