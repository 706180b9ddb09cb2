#pragma once
// The matmul kernel of tile registers (AMX), for matmul_amx.cc and its test only. A tile is 16 rows
// of 64 bytes: 16 rows of x by 32 k in bf16, 16 pairs of k by 16 outputs of weights, or 16 x 16
// sums. One step adds the products of 32 k to two tiles of outputs for one or two blocks of rows.
//
// A block always has 16 rows, those beyond T zero, so one row takes the same steps as many: results
// depend neither on the number of rows nor on threads. An output element is a chain over blocks of
// 32 k, of each of which the instruction makes one number: the sum of the even k's chain and of the
// odd k's. With int8 weights, widened to bf16, there is such a chain for each 64 k, and a chain of
// theirs, each times its scale.
//
// A backend B has the tiles and says:
//   B::Begin(), B::End()          around all that follows, on one thread
//   B::Zero()                     clears the four tiles of sums [block][half]
//   B::Step<kBlocks>(x0, x1, w)   x: [16][32] bf16 each; w: [16 pairs][2 halves][16][2] bf16
//   B::Store<kBlocks>(sums)       [block][half][16][16] floats
//   B::Activate(values, activation)  16 floats

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

template <class B, bool kInt8>
class TileKernel {
  static constexpr int64_t kRows = 16, kHalf = 16, kStepK = 32;
  static constexpr int64_t kTile = kRows * kHalf;
  // K is filled up with zeros to whole steps, with int8 to whole groups.
  static constexpr int64_t kUnit = kInt8 ? kGroupSize : kStepK;
  static constexpr int64_t kPairs = 8;  // pairs of row blocks whose int8 totals are kept at once

 public:
  static constexpr int64_t kPanel = 2 * kHalf;

  static int64_t PanelBytes(int64_t K) { return ScaleBytes(K) + Padded(K) * kPanel * kItem; }

  static void PackPanel(const PackParams& p, int64_t panel, char* out) {
    for (int64_t begin = 0; begin < Padded(p.K); begin += kGroupSize) {
      const int64_t depth = Least(kGroupSize, Padded(p.K) - begin);
      for (int64_t j = 0; j < kPanel; ++j) {
        float values[kGroupSize];
        for (int64_t i = 0; i < depth; ++i) values[i] = Source(p, panel * kPanel + j, begin + i);
        if constexpr (kInt8) {
          StoreInt8(values, begin, j, p.K, out);
        } else {
          auto* w = reinterpret_cast<uint16_t*>(out);
          for (int64_t i = 0; i < depth; ++i) w[At(begin + i, j)] = ToBF16(values[i]);
        }
      }
    }
  }

  static int64_t Blocks(int64_t T) { return CeilDiv(T, kRows); }
  static int64_t InputBytes(int64_t T, int64_t K) { return Blocks(T) * kRows * Padded(K) * 2; }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel * kItem, add = 0.05 * static_cast<double>(Blocks(T) * kRows);
    return read > add ? read : add;
  }

  // [block][step of K][16][32], bf16.
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K;
    for (int64_t block = begin; block < end; ++block) {
      auto* to = reinterpret_cast<uint16_t*>(packed) + block * kRows * Padded(K);
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t row = block * kRows + r;
        const float* x = p.x + row * p.x_stride;
        for (int64_t k = 0; k < Padded(K); k += kStepK) {
          const int64_t depth = row < p.T ? Least(kStepK, K > k ? K - k : 0) : 0;
          uint16_t* tile = to + k * kRows + r * kStepK;
          for (int64_t i = 0; i < depth; ++i) tile[i] = ToBF16(x[k + i]);
          for (int64_t i = depth; i < kStepK; ++i) tile[i] = 0;
        }
      }
    }
  }

  static void RunPanels(const MatmulParams& p, const char* packed, int64_t begin, int64_t end) {
    const auto* x = reinterpret_cast<const uint16_t*>(packed);
    B::Begin();
    for (int64_t panel = begin; panel < end; ++panel) {
      const char* w = static_cast<const char*>(p.w.data) + panel * PanelBytes(p.w.K);
      for (int64_t block = 0; block < Blocks(p.T); block += 2 * kPairs) {
        if constexpr (kInt8) {
          Int8Panel(p, x, w, panel, block, Least(block + 2 * kPairs, Blocks(p.T)));
        } else {
          Panel(p, x, w, panel, block, Least(block + 2 * kPairs, Blocks(p.T)));
        }
      }
    }
    B::End();
  }

 private:
  static constexpr int64_t kItem = kInt8 ? 1 : 2;
  using Sums = float[2 * 2 * kTile];  // [block][half][16][16]

  static int64_t Padded(int64_t K) { return CeilDiv(K, kUnit) * kUnit; }
  static int64_t ScaleBytes(int64_t K) {
    return kInt8 ? Padded(K) / kGroupSize * kPanel * int64_t{sizeof(uint16_t)} : 0;
  }
  // Where a panel has output j's weight of k: pairs of k, two halves of 16 outputs.
  static int64_t At(int64_t k, int64_t j) { return (k / 2 * kPanel + j) * 2 + k % 2; }

  static float Source(const PackParams& p, int64_t o, int64_t k) {
    return o < p.O && k < p.K ? LoadSource(p, o, k) : 0.0f;
  }

  static void StoreInt8(const float* values, int64_t begin, int64_t j, int64_t K, char* out) {
    float largest = 0;
    for (int64_t i = 0; i < kGroupSize; ++i) largest = Larger(largest, values[i]);
    const uint16_t scale = ScaleOf(largest);
    reinterpret_cast<uint16_t*>(out)[begin / kGroupSize * kPanel + j] = scale;
    auto* q = reinterpret_cast<int8_t*>(out + ScaleBytes(K));
    for (int64_t i = 0; i < kGroupSize; ++i)
      q[At(begin + i, j)] = Quantize(values[i], FromBF16(scale));
  }

  // Adds the products of k in [begin, end) for one or two blocks; w is those k's.
  static void Steps(bool pair, const uint16_t* x, int64_t K, int64_t begin, int64_t end,
                    const uint16_t* w) {
    for (int64_t k = begin; k < end; k += kStepK) {
      const uint16_t* x0 = x + k * kRows;
      if (pair) {
        B::template Step<2>(x0, x0 + kRows * Padded(K), w + (k - begin) * kPanel);
      } else {
        B::template Step<1>(x0, nullptr, w + (k - begin) * kPanel);
      }
    }
  }

  static void Store(bool pair, float* sums) {
    if (pair) return B::template Store<2>(sums);
    B::template Store<1>(sums);
  }

  static void Panel(const MatmulParams& p, const uint16_t* x, const char* w, int64_t panel,
                    int64_t first, int64_t last) {
    const int64_t K = p.w.K;
    for (int64_t block = first; block < last; block += 2) {
      alignas(64) Sums sums;
      const bool pair = block + 1 < last;
      B::Zero();
      Steps(pair, x + block * kRows * Padded(K), K, 0, Padded(K),
            reinterpret_cast<const uint16_t*>(w));
      Store(pair, sums);
      Finish(p, sums, panel, block, pair ? 2 : 1);
    }
  }

  // A group of weights is widened once for all blocks.
  static void Int8Panel(const MatmulParams& p, const uint16_t* x, const char* w, int64_t panel,
                        int64_t first, int64_t last) {
    const int64_t K = p.w.K;
    const auto* q = reinterpret_cast<const int8_t*>(w + ScaleBytes(K));
    const auto* scales = reinterpret_cast<const uint16_t*>(w);
    alignas(64) Sums totals[kPairs] = {};
    for (int64_t k = 0; k < Padded(K); k += kGroupSize, scales += kPanel) {
      alignas(64) uint16_t wide[kGroupSize * kPanel];
      for (int64_t i = 0; i < kGroupSize * kPanel; ++i)
        wide[i] = static_cast<uint16_t>(BitsOf(static_cast<float>(q[k * kPanel + i])) >> 16);
      for (int64_t block = first; block < last; block += 2) {
        alignas(64) Sums sums;
        const bool pair = block + 1 < last;
        B::Zero();
        Steps(pair, x + block * kRows * Padded(K), K, k, k + kGroupSize, wide);
        Store(pair, sums);
        AddScaled(sums, scales, pair ? 2 : 1, totals[(block - first) / 2]);
      }
    }
    for (int64_t block = first; block < last; block += 2)
      Finish(p, totals[(block - first) / 2], panel, block, block + 1 < last ? 2 : 1);
  }

  static void AddScaled(const float* sums, const uint16_t* scales, int64_t blocks, float* totals) {
    for (int64_t i = 0; i < blocks * 2 * kTile; ++i) {
      const int64_t j = i / kTile % 2 * kHalf + i % kHalf;
      totals[i] += sums[i] * FromBF16(scales[j]);
    }
  }

  // Bias, activation, and the rows and outputs that there are.
  static void Finish(const MatmulParams& p, const float* sums, int64_t panel, int64_t block,
                     int64_t blocks) {
    for (int64_t i = 0; i < blocks * 2; ++i) {
      const int64_t o = panel * kPanel + i % 2 * kHalf, n = Least(kHalf, p.w.O - o);
      for (int64_t r = 0; r < kRows && n > 0; ++r) {
        const int64_t row = (block + i / 2) * kRows + r;
        if (row >= p.T) break;
        float values[kHalf] = {};
        for (int64_t j = 0; j < n; ++j) {
          values[j] = sums[i * kTile + r * kHalf + j] + (p.bias != nullptr ? p.bias[o + j] : 0.0f);
        }
        if (p.activation != Activation::kNone) B::Activate(values, p.activation);
        for (int64_t j = 0; j < n; ++j) p.y[row * p.y_stride + o + j] = values[j];
      }
    }
  }
};

}  // namespace
}  // namespace skein::kernels
