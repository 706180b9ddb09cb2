// Matmul with AVX-512: panels of 32 outputs, fused multiply-adds; bf16 weights are widened to fp32
// in registers, int8 ones to 16 bits. See matmul_vector.h and matmul_int8_vector.h.

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_int8_vector.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"

namespace skein::kernels::avx512 {
namespace {

template <DType kDType>
struct Int8 : ZmmPairs<kDType> {
  static __m512i Dot(__m512i sum, __m512i w, __m512i x) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
  }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(VectorKernel<FusedBF16>{});
    if (dtype == DType::kI8) return f(Int8VectorKernel<Int8<DType::kI8>>{});
    if (dtype == DType::kI8A8) return f(Int8VectorKernel<Int8<DType::kI8A8>>{});
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
