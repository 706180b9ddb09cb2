// Matmul with AVX-512: panels of 32 outputs, fused multiply-adds; bf16 and int8 weights are widened
// to fp32 in registers. See matmul_vector.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_int8a8_vector.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"

namespace skein::kernels::avx512 {
namespace {

// x and weights widened to 16 bits, products of pairs added to 32.
struct A8 : ZmmInts {
  static constexpr int64_t kStep = 2;
  static constexpr int kMaxRows = 12, kOffset = 0;
  static int8_t Store(int8_t q) { return q; }
  static void Load(const int8_t* w, Ints* v) {
    for (int half = 0; half < 2; ++half) {
      v[half] =
          _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + half));
    }
  }
  static int32_t Word(const int8_t* q) {
    return static_cast<int32_t>(static_cast<uint16_t>(q[0]) | static_cast<uint32_t>(q[1]) << 16);
  }
  static Ints Dot(Ints sum, Ints w, Ints x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
  }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<FusedBF16>{});
    if (dtype == DType::kI8A8) return f(A8VectorKernel<A8>{});
    if (dtype == DType::kI8) return f(VectorKernel<FusedI8>{});
    return f(VectorKernel<FusedF32>{});
  }
};

}  // namespace

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) { return BytesOfPacked<Tier>(O, K, dtype); }
void Pack(const PackParams& p, Stream& stream) { RunPack<Tier>(p, stream); }
void Matmul(const MatmulParams* params, int n, Stream& stream) {
  RunMatmul<Tier>(params, n, stream);
}

}  // namespace skein::kernels::avx512
