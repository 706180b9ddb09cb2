#pragma once
// What the instructions of a tier can do at best when their operands come from the caches, as in
// every real product: the ceiling of prefill and of batches. PeakFlops (ceilings.h) keeps operands
// in registers, which no product can.
//
// A thread's x (96 KiB) and w (8 panels of 16 KiB) lie in its second cache. A panel of w comes into
// the first cache and all tiles of x go over it; sums begin at zero in registers and are stored.
// Every 32 bits of x and w hold one fp32, two bf16 or 16-bit numbers, or four int8 of k.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "bench/ceilings.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::bench {

struct BlockedMemory {
  static constexpr int64_t kXBytes = int64_t{96} << 10, kPanelBytes = int64_t{16} << 10;
  static constexpr int64_t kPanels = 8, kSumBytes = int64_t{192} << 10;
  static constexpr int64_t kBytes = kXBytes + kPanels * kPanelBytes + kSumBytes;
  char* memory;  // of one thread, 64-byte aligned

  const char* x() const { return memory; }
  const char* panel(int64_t i) const { return memory + kXBytes + i * kPanelBytes; }
  float* sums() const { return reinterpret_cast<float*>(memory + kXBytes + kPanels * kPanelBytes); }
};

// multiply(tile of x, panel of w, tile of sums) for each pair, `rounds` times over.
template <int64_t kTileBytes, int64_t kTileSums,
          void (*multiply)(const char* x, const char* w, float* sums)>
void ForEachTile(const BlockedMemory& m, int64_t rounds) {
  constexpr int64_t kTiles = BlockedMemory::kXBytes / kTileBytes;
  static_assert(kTiles * BlockedMemory::kPanels * kTileSums * 4 <= BlockedMemory::kSumBytes);
  for (int64_t r = 0; r < rounds; ++r) {
    for (int64_t p = 0; p < BlockedMemory::kPanels; ++p) {
      for (int64_t t = 0; t < kTiles; ++t) {
        multiply(m.x() + t * kTileBytes, m.panel(p), m.sums() + (p * kTiles + t) * kTileSums);
      }
    }
  }
  sink += static_cast<uint64_t>(m.sums()[0]);
}

enum class Lanes { kFloat, kWords, kWordDots, kPairs, kFours };  // what 32 bits hold

template <Lanes kLanes>
__attribute__((target("avx2,fma"), always_inline)) inline __m256 MultiplyAdd256(__m256 sum,
                                                                                __m256 x,
                                                                                __m256 w) {
  if constexpr (kLanes == Lanes::kFloat) return _mm256_fmadd_ps(x, w, sum);
  return _mm256_castsi256_ps(_mm256_add_epi32(
      _mm256_castps_si256(sum), _mm256_madd_epi16(_mm256_castps_si256(x), _mm256_castps_si256(w))));
}

// 6 rows by 16 outputs, 256 steps. A step's 6 values of x lie side by side, so do its 16 of w.
template <Lanes kLanes>
__attribute__((target("avx2,fma"))) inline void Multiply256(const char* x_tile, const char* panel,
                                                            float* sums) {
  constexpr int kRows = 6, kSteps = BlockedMemory::kPanelBytes / 64;
  const auto* x = reinterpret_cast<const float*>(x_tile);
  const auto* w = reinterpret_cast<const float*>(panel);
  __m256 acc[kRows][2] = {};
  for (int k = 0; k < kSteps; ++k, x += kRows, w += 16) {
    const __m256 w0 = _mm256_load_ps(w), w1 = _mm256_load_ps(w + 8);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r);
      acc[r][0] = MultiplyAdd256<kLanes>(acc[r][0], value, w0);
      acc[r][1] = MultiplyAdd256<kLanes>(acc[r][1], value, w1);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    _mm256_store_ps(sums + 16 * r, acc[r][0]);
    _mm256_store_ps(sums + 16 * r + 8, acc[r][1]);
  }
}

template <Lanes kLanes>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni"),
               always_inline)) inline __m512
MultiplyAdd512(__m512 sum, __m512 x, __m512 w) {
  if constexpr (kLanes == Lanes::kFloat) return _mm512_fmadd_ps(x, w, sum);
  if constexpr (kLanes == Lanes::kPairs)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  const __m512i sums = _mm512_castps_si512(sum), a = _mm512_castps_si512(x),
                b = _mm512_castps_si512(w);
  if constexpr (kLanes == Lanes::kWords)
    return _mm512_castsi512_ps(_mm512_add_epi32(sums, _mm512_madd_epi16(a, b)));
  if constexpr (kLanes == Lanes::kWordDots)
    return _mm512_castsi512_ps(_mm512_dpwssd_epi32(sums, a, b));
  return _mm512_castsi512_ps(_mm512_dpbusd_epi32(sums, a, b));
}

// 12 rows by 32 outputs, 128 steps of k. The compiler itself makes no instructions of BF16 or VNNI
// here: the fp32 form runs wherever AVX-512 is.
template <Lanes kLanes>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,avx512vnni"))) inline void Multiply512(
    const char* x_tile, const char* panel, float* sums) {
  constexpr int kRows = 12, kSteps = BlockedMemory::kPanelBytes / 128;
  const auto* x = reinterpret_cast<const float*>(x_tile);
  const auto* w = reinterpret_cast<const float*>(panel);
  __m512 acc[kRows][2] = {};
  for (int k = 0; k < kSteps; ++k, x += kRows, w += 32) {
    const __m512 w0 = _mm512_load_ps(w), w1 = _mm512_load_ps(w + 16);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const __m512 value = _mm512_set1_ps(x[r]);
      acc[r][0] = MultiplyAdd512<kLanes>(acc[r][0], value, w0);
      acc[r][1] = MultiplyAdd512<kLanes>(acc[r][1], value, w1);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    _mm512_store_ps(sums + 32 * r, acc[r][0]);
    _mm512_store_ps(sums + 32 * r + 16, acc[r][1]);
  }
}

// 32 rows by 32 outputs, 8 steps: each is two tiles of x, then of w. Tiles are configured.
template <bool kInt8>
__attribute__((target("amx-tile,amx-bf16,amx-int8"))) inline void MultiplyTiles(const char* x,
                                                                                const char* w,
                                                                                float* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int step = 0; step < BlockedMemory::kPanelBytes / 2048; ++step, x += 2048, w += 2048) {
    _tile_loadd(4, x, 64);
    _tile_loadd(5, x + 1024, 64);
    _tile_loadd(6, w, 64);
    _tile_loadd(7, w + 1024, 64);
    if constexpr (kInt8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
}

template <bool kInt8>
__attribute__((target("amx-tile"))) inline void TilesOnce(const BlockedMemory& m, int64_t rounds) {
  ConfigureTiles();
  ForEachTile<16384, 1024, MultiplyTiles<kInt8>>(m, rounds);
  _tile_release();
}

// One kind of instruction: a thread's work, and its multiplications and additions in a round.
struct BlockedProduct {
  void (*work)(const BlockedMemory&, int64_t rounds);
  double operations;
};

// rows * outputs * k, of all tiles of x and all panels of w.
constexpr double BlockedOperations(double rows, double outputs, double k) {
  return 2 * rows * outputs * k * static_cast<double>(BlockedMemory::kPanels);
}

// What `tier` multiplies such weights with. int8 on "amx" takes as long as bf16, by whose tiles it
// is given here: each row of x is two rows of int8 tiles.
inline BlockedProduct BlockedProductOf(const std::string& tier, kernels::DType weights) {
  using kernels::DType;
  if (tier == "avx2" && kernels::IsInt8(weights))
    return {ForEachTile<6144, 96, Multiply256<Lanes::kWords>>, BlockedOperations(96, 16, 512)};
  if (tier == "plain" || tier == "avx2")
    return {ForEachTile<6144, 96, Multiply256<Lanes::kFloat>>, BlockedOperations(96, 16, 256)};
  if (tier == "amx" && weights == DType::kI8A8)
    return {TilesOnce<true>, BlockedOperations(192, 32, 512)};
  if (tier == "amx" && weights != DType::kF32)
    return {TilesOnce<false>, BlockedOperations(192, 32, 256)};
  if (tier == "avx512bf16" && weights == DType::kI8A8)
    return {ForEachTile<6144, 384, Multiply512<Lanes::kFours>>, BlockedOperations(192, 32, 512)};
  if (tier == "avx512bf16" && weights == DType::kI8)
    return {ForEachTile<6144, 384, Multiply512<Lanes::kWordDots>>, BlockedOperations(192, 32, 256)};
  if (tier == "avx512bf16" && weights != DType::kF32)
    return {ForEachTile<6144, 384, Multiply512<Lanes::kPairs>>, BlockedOperations(192, 32, 256)};
  if (kernels::IsInt8(weights))
    return {ForEachTile<6144, 384, Multiply512<Lanes::kWords>>, BlockedOperations(192, 32, 256)};
  return {ForEachTile<6144, 384, Multiply512<Lanes::kFloat>>, BlockedOperations(192, 32, 128)};
}

// Operations per second of all threads.
inline double BlockedFlops(kernels::Device& device, kernels::Stream& stream,
                           kernels::DType weights) {
  const BlockedProduct product = BlockedProductOf(device.info().tier, weights);
  kernels::Executor& executor = stream.executor();
  const int n = executor.num_threads();
  const kernels::Buffer memory(device, static_cast<size_t>(n * BlockedMemory::kBytes));
  // 1.0 in bf16, 1.002 in fp32: no operand is slow.
  std::fill_n(memory.as<uint16_t>(), memory.bytes() / 2, uint16_t{0x3f80});
  constexpr int64_t kRounds = 100;
  const Timing t = Measure(0.3, [&] {
    executor.ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        product.work({memory.as<char>() + i * BlockedMemory::kBytes}, kRounds);
    });
  });
  return product.operations * kRounds * n / t.best;
}

}  // namespace skein::bench
