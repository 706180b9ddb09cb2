#pragma once
// How fast one row's product goes when its weights lie in the caches: memory is not what holds it
// up then, but widening the weights and what else its instructions do.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "bench/ceilings.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::bench {

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
