// Matmul with AVX512-BF16: bf16 weights and x are multiplied in pairs of k. An output element is a
// chain over the pairs; what the instruction does within a pair is the machine's (two
// multiply-adds, denormals flushed, rounded to nearest), so results differ from the other tiers' in
// the last bits of fp32. int8 weights are widened to bf16, which holds them exactly. See
// matmul_vector.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"
#include "kernels/cpu/widen_int8.h"

namespace skein::kernels::avx512bf16 {
namespace {

// A word of x is a pair of bf16, the first k in the low half; so is a word of weights.
template <DType kDType, typename StoredType>
struct Kind {
  using Lanes = Zmm;
  using Stored = StoredType;
  static constexpr DType kType = kDType;
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
};

struct BF16 : Kind<DType::kBF16, uint16_t> {
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

// A byte is a sign and a size. The 64 bytes of a word of the panel stand so that unpacking low and
// high bytes within 128-bit lanes gives both halves in order: lane l holds the pairs of outputs 4 l
// to 4 l + 3, then those of outputs 16 + 4 l on.
struct I8 : Kind<DType::kI8, int8_t> {
  using Wide = BF16;
  static void Load(const int8_t* w, __m512* v) {
    __m512i wide[2];
    WidenInt8(_mm512_load_si512(w), wide);
    v[0] = _mm512_castsi512_ps(wide[0]);
    v[1] = _mm512_castsi512_ps(wide[1]);
  }
  static void Widen(const int8_t* w, uint16_t* out) {
    __m512 v[2];
    Load(w, v);
    _mm512_store_ps(out, v[0]);
    _mm512_store_ps(out + 32, v[1]);
  }
  static void Store(const float (*values)[32], int8_t* out) {
    for (int j = 0; j < 32; ++j) {
      for (int k = 0; k < 2; ++k) {
        const int q = static_cast<int>(values[k][j]);
        out[j % 16 / 4 * 16 + j / 16 * 8 + j % 4 * 2 + k] =
            static_cast<int8_t>(q < 0 ? -q | 0x80 : q);
      }
    }
  }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<BF16>{});
    if (dtype == DType::kI8) return f(VectorKernel<I8>{});
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
