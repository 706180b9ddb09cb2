#pragma once
// How the kernels of tiles deal rows to blocks and finish their sums, for matmul_tiles.h and
// matmul_int8_tiles.h only.

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

// T rows are dealt evenly to the blocks, since a step takes as long as its blocks have rows.
inline int64_t RowsOfBlock(int64_t T, int64_t blocks) {
  return blocks == 0 ? 0 : CeilDiv(T, blocks);
}

// Rows [row, end) of the 32 outputs from o on, from the sums of those rows: bias, activation, and
// the outputs that there are. B::Activate(values, activation) is that of 16 floats.
template <class B>
void FinishTiles(const MatmulParams& p, const float* sums, int64_t o, int64_t row, int64_t end) {
  constexpr int64_t kHalf = 16, kPanel = 2 * kHalf;
  for (; row < end; ++row, sums += kPanel) {
    for (int64_t half = o; half < Least(o + kPanel, p.w.O); half += kHalf) {
      const int64_t n = Least(kHalf, p.w.O - half);
      float values[kHalf] = {};
      for (int64_t j = 0; j < n; ++j)
        values[j] = sums[half - o + j] + (p.bias != nullptr ? p.bias[half + j] : 0.0f);
      if (p.activation != Activation::kNone) B::Activate(values, p.activation);
      for (int64_t j = 0; j < n; ++j) p.y[row * p.y_stride + half + j] = values[j];
    }
  }
}

}  // namespace
}  // namespace skein::kernels
