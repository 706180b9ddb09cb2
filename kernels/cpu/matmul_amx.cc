// Matmul with AMX: bf16 weights, and int8 ones widened to bf16, by tiles; fp32 weights by AVX-512.
// See matmul_tiles.h. Tiles 0..3 hold sums, 4 and 5 x, 6 and 7 weights. The tiles are configured at
// the beginning of a piece of work and given back at its end, so that no thread carries 8 KiB of
// them through a switch.

#include <immintrin.h>

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"

namespace skein::kernels::amx {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_of_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

struct Tiles {
  static void Begin() {
    static constexpr TileConfig kConfig;
    _tile_loadconfig(&kConfig);
  }
  static void End() { _tile_release(); }
  static void Zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  template <int kBlocks>
  static void Step(const uint16_t* x0, const uint16_t* x1, const uint16_t* w) {
    // What was written to x and w has to be there: the compiler does not see what a tile reads.
    __asm__ volatile("" ::: "memory");
    _tile_loadd(6, w, 128);
    _tile_loadd(7, w + 32, 128);
    _tile_loadd(4, x0, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kBlocks == 2) {
      _tile_loadd(5, x1, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  template <int kBlocks>
  static void Store(float* sums) {
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if constexpr (kBlocks == 2) {
      _tile_stored(2, sums + 512, 64);
      _tile_stored(3, sums + 768, 64);
    }
  }
  static void Activate(float* values, Activation activation) {
    _mm512_storeu_ps(values, Zmm::Activate(_mm512_loadu_ps(values), activation));
  }
};

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(TileKernel<Tiles, false>{});
    if (dtype == DType::kI8) return f(TileKernel<Tiles, true>{});
    return f(VectorKernel<FusedF32>{});
  }
};

}  // namespace

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) { return BytesOfPacked<Tier>(O, K, dtype); }
void Pack(const PackParams& p, Stream& stream) { RunPack<Tier>(p, stream); }
void Matmul(const MatmulParams* params, int n, Stream& stream) {
  RunMatmul<Tier>(params, n, stream);
}

}  // namespace skein::kernels::amx
