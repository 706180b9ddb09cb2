// Matmul with AMX: bf16 and int8 weights by tiles (matmul_tiles.h, matmul_int8_tiles.h), fp32 ones
// by AVX-512. Of the tiles (tile_config.h) x is the left factor and the weights are the right one;
// they are configured at the beginning of a piece of work and given back at its end, so that no
// thread carries 8 KiB of them through a switch.

#include <immintrin.h>

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/matmul_int8_tiles.h"
#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/matmul_vector.h"
#include "kernels/cpu/ops_avx512.h"
#include "kernels/cpu/tile_config.h"

namespace skein::kernels::amx {
namespace {

class Tiles {
 public:
  static void Begin(int rows) {
    ConfigureTiles(rows);
    rows_ = rows;
  }
  static void End() { _tile_release(); }
  static void Zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  template <int kBlocks>
  static void Load(const float* sums) {
    __asm__ volatile("" ::: "memory");  // what is read of them was written before
    _tile_loadd(0, sums, 128);
    _tile_loadd(1, sums + 16, 128);
    if constexpr (kBlocks == 2) {
      _tile_loadd(2, sums + rows_ * 32, 128);
      _tile_loadd(3, sums + rows_ * 32 + 16, 128);
    }
  }
  // Lines fetched all at once hold up the loads behind them: some of them after each load.
  template <int kBlocks>
  static void Step(const uint16_t* x0, const uint16_t* x1, const uint16_t* w, Ahead* ahead) {
    // What was written to x and w has to be there: the compiler does not see what a tile reads.
    __asm__ volatile("" ::: "memory");
    _tile_loadd(6, w, 64);
    Fetch(ahead);
    _tile_loadd(7, w + 512, 64);
    Fetch(ahead);
    _tile_loadd(4, x0, 64);
    _tile_dpbf16ps(0, 4, 6);
    Fetch(ahead);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kBlocks == 2) {
      _tile_loadd(5, x1, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    Fetch(ahead);
  }
  template <int kBlocks>
  static void Store(float* y, int64_t stride) {
    _tile_stored(0, y, 4 * stride);
    _tile_stored(1, y + 16, 4 * stride);
    if constexpr (kBlocks == 2) {
      _tile_stored(2, y + rows_ * stride, 4 * stride);
      _tile_stored(3, y + rows_ * stride + 16, 4 * stride);
    }
    __asm__ volatile("" ::: "memory");
  }
  static void Narrow(const float* x, uint16_t* out) {
    _mm512_storeu_si512(out, reinterpret_cast<__m512i>(
                                 _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x))));
  }
  static void LoadWeights(const int8_t* w, Ahead* ahead) {
    __asm__ volatile("" ::: "memory");  // as in Step
    _tile_loadd(6, w, 64);
    Fetch(ahead);
    Fetch(ahead);
    _tile_loadd(7, w + 1024, 64);
    Fetch(ahead);
    Fetch(ahead);
  }
  // The intrinsics of tiles take their numbers as they are written.
  template <int kSet>
  static void LoadRows(const char* x) {
    __asm__ volatile("" ::: "memory");
    if constexpr (kSet == 0) _tile_loadd(4, x, 64);
    if constexpr (kSet == 1) _tile_loadd(5, x, 64);
  }
  template <int kSet, int kHalf>
  static void Multiply() {
    constexpr int kTile = 2 * kSet + kHalf;
    if constexpr (kTile == 0) {
      _tile_zero(0);
      _tile_dpbssd(0, 4, 6);
    }
    if constexpr (kTile == 1) {
      _tile_zero(1);
      _tile_dpbssd(1, 4, 7);
    }
    if constexpr (kTile == 2) {
      _tile_zero(2);
      _tile_dpbssd(2, 5, 6);
    }
    if constexpr (kTile == 3) {
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
    }
  }
  template <int kSet, int kHalf>
  static void StoreInts(int32_t* sums) {
    constexpr int kTile = 2 * kSet + kHalf;
    __asm__ volatile("" ::: "memory");  // what was read of them stays before
    if constexpr (kTile == 0) _tile_stored(0, sums, 128);
    if constexpr (kTile == 1) _tile_stored(1, sums + 16, 128);
    if constexpr (kTile == 2) _tile_stored(2, sums, 128);
    if constexpr (kTile == 3) _tile_stored(3, sums + 16, 128);
    __asm__ volatile("" ::: "memory");
  }
  static void Quantize(const float* x, float inverse, int8_t* q) {
    ZmmInts::Quantize(x, inverse, q);
  }
  static void Activate(float* values, Activation activation) {
    _mm512_storeu_ps(values, Zmm::Activate(_mm512_loadu_ps(values), activation));
  }

 private:
  static void Fetch(Ahead* ahead) {
    for (int64_t i = 0; i < ahead->bytes; i += 64) _mm_prefetch(ahead->next + i, _MM_HINT_T1);
    ahead->next += ahead->bytes;
  }

  static thread_local int64_t rows_;  // between Begin and End
};
thread_local int64_t Tiles::rows_ = 0;

struct Tier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(TileKernel<Tiles>{});
    if (dtype == DType::kI8) return f(Int8TileKernel<Tiles, TwoBytes>{});
    if (dtype == DType::kI8A8) return f(Int8TileKernel<Tiles, OneByte>{});
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
