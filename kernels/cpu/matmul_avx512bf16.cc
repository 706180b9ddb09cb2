// Matmul with AVX512-BF16: bf16 weights and x are multiplied in pairs of k. An output element is a
// chain over the pairs; what the instruction does within a pair is the machine's (two
// multiply-adds, denormals flushed, rounded to nearest), so results differ from the other tiers' in
// the last bits of fp32. int8 weights are widened to bf16, which holds them exactly, by
// AVX512-VBMI. See matmul_vector.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_int8a8_vector.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"

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

// int8 to bf16 by table: the low and the high byte of the size of a number, one of 128.
struct Bf16Bytes {
  alignas(64) uint8_t low[128], high[128];
};
constexpr Bf16Bytes MakeBf16Bytes() {
  Bf16Bytes table{};
  for (int size = 1; size < 128; ++size) {
    int exponent = 0;
    while (size >> (exponent + 1) != 0) ++exponent;
    const int bits = (127 + exponent) << 7 | ((size << (7 - exponent)) & 0x7f);
    table.low[size] = static_cast<uint8_t>(bits);
    table.high[size] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
constexpr Bf16Bytes kBf16Bytes = MakeBf16Bytes();

// A byte is a sign and a size. The 64 bytes of a word of the panel stand so that unpacking low and
// high bytes within 128-bit lanes gives both halves in order: lane l holds the pairs of outputs 4 l
// to 4 l + 3, then those of outputs 16 + 4 l on.
struct I8 : Kind<DType::kI8, int8_t> {
  using Wide = BF16;
  static void Load(const int8_t* w, __m512* v) {
    const __m512i q = _mm512_load_si512(w);
    const auto* table = reinterpret_cast<const __m512i*>(kBf16Bytes.low);
    // The tables have 128 entries: the sign does not count.
    const __m512i low = _mm512_permutex2var_epi8(table[0], q, table[1]);
    const __m512i size = _mm512_permutex2var_epi8(table[2], q, table[3]);
    // high = size | (q & sign)
    const __m512i high = _mm512_ternarylogic_epi32(size, q, _mm512_set1_epi8(-128), 0xf8);
    v[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi8(low, high));
    v[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi8(low, high));
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

// Products of four by AVX512-VNNI, which takes one side without a sign: 128 is added to weights,
// and taken off again where a sum starts.
struct A8 : ZmmInts {
  static constexpr int64_t kStep = 4;
  static constexpr int kMaxRows = 12, kOffset = 128;
  static int8_t Store(int8_t q) { return static_cast<int8_t>(q ^ -128); }
  static void Load(const int8_t* w, Ints* v) {
    v[0] = _mm512_load_si512(w);
    v[1] = _mm512_load_si512(w + 64);
  }
  static int32_t Word(const int8_t* q) {
    int32_t word;
    std::memcpy(&word, q, sizeof(word));
    return word;
  }
  static Ints Dot(Ints sum, Ints w, Ints x) { return _mm512_dpbusd_epi32(sum, w, x); }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<BF16>{});
    if (dtype == DType::kI8A8) return f(A8VectorKernel<A8>{});
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
