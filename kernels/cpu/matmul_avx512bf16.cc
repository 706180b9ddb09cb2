// Matmul with AVX512-BF16: bf16 weights and x are multiplied in pairs of k. An output element is a
// chain over the pairs; what the instruction does within a pair is the machine's (two
// multiply-adds, denormals flushed, rounded to nearest), so results differ from the other tiers' in
// the last bits of fp32. int8 weights are multiplied by AVX512-VNNI. See matmul_vector.h and
// matmul_int8_vector.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_int8_vector.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"

namespace skein::kernels::avx512bf16 {
namespace {

// A word of x is a pair of bf16, the first k in the low half; so is a word of weights.
struct BF16 {
  using Lanes = Zmm;
  using Stored = uint16_t;
  static constexpr int64_t kStep = 2;
  static constexpr int kMaxRows = 12, kSide = 1;
  static constexpr int64_t kDepth = 256;
  static __m512 MultiplyAdd(__m512 x, __m512 w, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  static __m256 Words(const float* x) {
    return reinterpret_cast<__m256>(_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
  }
  static float Word(const float* x, int64_t n) {
    const uint32_t high = n > 1 ? ToBF16(x[1]) : 0;
    return FloatOf(high << 16 | ToBF16(x[0]));
  }
  static void Load(const uint16_t* w, __m512* v) {
    v[0] = _mm512_load_ps(w);
    v[1] = _mm512_load_ps(w + 32);
  }
  static void Store(const float (*values)[32], uint16_t* out) {
    for (int j = 0; j < 32; ++j) {
      out[2 * j] = ToBF16(values[0][j]);
      out[2 * j + 1] = ToBF16(values[1][j]);
    }
  }
};

struct I8 : ZmmPairs<DType::kI8> {
  static Ints Dot(Ints sum, Ints w, Ints x) { return _mm512_dpwssd_epi32(sum, w, x); }
};

// Products of four by AVX512-VNNI, which takes one side without a sign: 128 is added to weights,
// and taken off again where a sum starts.
struct A8 : ZmmInts {
  using X = int8_t;
  static constexpr DType kType = DType::kI8A8;
  static constexpr int kMaxRows = 12, kOffset = 128;
  static int8_t Store(int8_t q) { return static_cast<int8_t>(q ^ -128); }
  static void Load(const int8_t* w, Ints* v) {
    v[0] = _mm512_load_si512(w);
    v[1] = _mm512_load_si512(w + 64);
  }
  static Ints Dot(Ints sum, Ints w, Ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<BF16>{});
    if (dtype == DType::kI8) return f(Int8VectorKernel<I8>{});
    if (dtype == DType::kI8A8) return f(Int8VectorKernel<A8>{});
    return f(VectorKernel<FusedF32>{});
  }
};

}  // namespace

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) { return BytesOfPacked<Tier>(O, K, dtype); }
void Pack(const PackParams& p, Stream& stream) { RunPack<Tier>(p, stream); }
void Matmul(const MatmulParams* params, int n, Stream& stream) {
  RunMatmul<Tier>(params, n, stream);
}

}  // namespace skein::kernels::avx512bf16
