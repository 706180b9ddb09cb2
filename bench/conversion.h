#pragma once
// How fast one row's product goes when its weights lie in the caches: memory is not what holds it
// up then, but widening the weights (and what else its instructions do). Decode of one row cannot
// pass the slower of this and the read bandwidth.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/ceilings.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::bench {

// The plainest widening of int8: to int32, to float, multiplied and added. `bytes` weights with an
// x that stays in registers.
__attribute__((target("avx2,fma"))) inline void WidenInt8x8(const char* weights, int64_t bytes) {
  __m256 acc[8] = {};
  const __m256 x = _mm256_set1_ps(0.5f);
  for (int64_t i = 0; i < bytes; i += 64) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m128i q = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights + i + 8 * j));
      acc[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), x, acc[j]);
    }
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm256_add_ps(acc[0], acc[j]);
  sink += static_cast<uint64_t>(_mm256_cvtss_f32(acc[0]));
}

__attribute__((target("avx512f"))) inline void WidenInt8x16(const char* weights, int64_t bytes) {
  __m512 acc[8] = {};
  const __m512 x = _mm512_set1_ps(0.5f);
  for (int64_t i = 0; i < bytes; i += 128) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights + i + 16 * j));
      // All lanes: the forms without a mask make GCC 12 warn.
      const __m512i wide = _mm512_maskz_cvtepi8_epi32(0xffff, q);
      acc[j] = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(0xffff, wide), x, acc[j]);
    }
  }
  for (int j = 1; j < 8; ++j) acc[0] = _mm512_add_ps(acc[0], acc[j]);
  sink += static_cast<uint64_t>(_mm512_cvtss_f32(acc[0]));
}

// Bytes of int8 weights a second of all threads by the plain loop of the tier's width. 0: "plain".
inline double WideningBandwidth(kernels::Device& device, kernels::Stream& stream) {
  if (device.info().tier == "plain") return 0;
  constexpr int64_t kBytes = int64_t{128} << 10, kRounds = 50;  // of a thread, in its second cache
  const auto widen = device.info().tier == "avx2" ? WidenInt8x8 : WidenInt8x16;
  kernels::Executor& executor = stream.executor();
  const int n = executor.num_threads();
  const kernels::Buffer memory(device, static_cast<size_t>(n * kBytes));
  std::fill_n(memory.as<char>(), memory.bytes(), char{3});
  const Timing t = Measure(0.2, [&] {
    executor.ParallelFor(n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * kRounds; i < end * kRounds; ++i)
        widen(memory.as<char>() + i / kRounds * kBytes, kBytes);
    });
  });
  return static_cast<double>(n * kBytes * kRounds) / t.best;
}

// Bytes of packed weights a second by the tier's own product of one row: a group of products with
// one small matrix, whose weights then stay in the caches.
inline double CachedProductBandwidth(kernels::Device& device, kernels::Stream& stream,
                                     kernels::DType weights) {
  constexpr int32_t kO = 512, kK = 768, kProducts = 16;
  const kernels::OpTable& ops = device.ops();
  const int64_t bytes = ops.packed_bytes(kO, kK, weights);
  const kernels::Buffer matrix(device, static_cast<size_t>(bytes)), x(device, kK * 4);
  const kernels::Buffer y(device, size_t{kProducts} * kO * 4);
  const std::vector<float> source(size_t{kO} * kK, 0.25f);
  std::fill_n(x.as<float>(), kK, 0.5f);
  kernels::PackParams pack;
  pack.source = source.data();
  pack.O = kO;
  pack.K = kK;
  pack.dtype = weights;
  pack.out = matrix.data();
  ops.pack(pack, stream);
  std::vector<kernels::MatmulParams> products(kProducts);
  for (int32_t i = 0; i < kProducts; ++i) {
    kernels::MatmulParams& p = products[i];
    p.x = x.as<float>();
    p.x_stride = kK;
    p.T = 1;
    p.w = {kO, kK, weights, matrix.data()};
    p.y = y.as<float>() + int64_t{i} * kO;
    p.y_stride = kO;
  }
  const Timing t = Measure(0.2, [&] { ops.matmul(products.data(), kProducts, stream); });
  return static_cast<double>(bytes) * kProducts / t.best;
}

}  // namespace skein::bench
