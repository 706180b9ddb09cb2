#pragma once
// The matmul kernel of tile registers (AMX), for matmul_amx.cc and its test only. A tile is up to
// 16 rows of 64 bytes: rows of x by 32 k in bf16, 16 pairs of k by 16 outputs of weights, or rows
// by 16 sums. One step adds the products of 32 k to two tiles of outputs for one or two blocks of
// rows. Rows are dealt evenly to the blocks, since a step takes as long as its blocks have rows.
//
// A row of a tile is computed by itself, so results depend neither on the number of rows nor on
// threads. An output element is a chain over blocks of 32 k, of each of which the instruction makes
// one number: the sum of the even k's chain and of the odd k's. With int8 weights, widened to bf16,
// there is such a chain for each 64 k, and a chain of theirs, each times its scale.
//
// A backend B has the tiles and says:
//   B::Begin(rows), B::End()      around all that follows, on one thread; rows of x and of sums
//   B::Zero()                     clears the four tiles of sums [block][half]
//   B::Step<kBlocks>(x0, x1, w)   x: [rows][32] bf16 each; w: [2 halves][16 pairs][16][2] bf16
//   B::Store<kBlocks>(y, stride)  [block][rows] rows of 32 floats, `stride` floats apart
//   B::Narrow(x, out)             32 floats to bf16
//   B::Widen(q, out)              64 int8 weights, as PlaceInt8 has them, to two rows of a tile
//   B::Activate(values, activation)  16 floats

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

template <class B, bool kInt8>
class TileKernel {
  static constexpr int64_t kMaxRows = 16, kHalf = 16, kStepK = 32;
  static constexpr int64_t kTile = 16 * kStepK;  // weights of one half and one step
  // K is filled up with zeros to whole steps, with int8 to whole groups.
  static constexpr int64_t kUnit = kInt8 ? kGroupSize : kStepK;
  static constexpr int64_t kPairs = 8;  // pairs of blocks that go over a panel at once
  // Weights are fetched so many bytes before they are used.
  static constexpr int64_t kAhead = kInt8 ? 3072 : 1536;

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
          for (int64_t i = 0; i < depth; ++i) w[Place(begin + i, j)] = ToBF16(values[i]);
        }
      }
    }
  }

  static int64_t Blocks(int64_t T) { return CeilDiv(T, kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) { return Blocks(T) * Rows(T) * Padded(K) * 2; }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel * kItem,
                 add = 0.05 * static_cast<double>(Blocks(T) * Rows(T));
    return read > add ? read : add;
  }

  // [block][step of K][rows][32], bf16.
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K, rows = Rows(p.T);
    for (int64_t row = begin * rows; row < end * rows; ++row) {
      auto* to =
          reinterpret_cast<uint16_t*>(packed) + row / rows * rows * Padded(K) + row % rows * kStepK;
      const float* x = p.x + row * p.x_stride;
      for (int64_t k = 0; k < Padded(K); k += kStepK, to += rows * kStepK) {
        const int64_t depth = row < p.T ? Least(kStepK, K > k ? K - k : 0) : 0;
        if (depth == kStepK) {
          B::Narrow(x + k, to);
          continue;
        }
        float rest[kStepK] = {};
        for (int64_t i = 0; i < depth; ++i) rest[i] = x[k + i];
        B::Narrow(rest, to);
      }
    }
  }

  static void RunPanels(const MatmulParams& p, const char* packed, int64_t begin, int64_t end) {
    const auto* x = reinterpret_cast<const uint16_t*>(packed);
    B::Begin(static_cast<int>(Rows(p.T)));
    for (int64_t panel = begin; panel < end; ++panel) {
      const char* w = static_cast<const char*>(p.w.data) + panel * PanelBytes(p.w.K);
      for (int64_t block = 0; block < Blocks(p.T); block += 2 * kPairs) {
        const int64_t last = Least(block + 2 * kPairs, Blocks(p.T));
        if constexpr (kInt8) {
          Int8Panel(p, x, w, panel, block, last);
        } else {
          Panel(p, x, reinterpret_cast<const uint16_t*>(w), panel, block, last);
        }
      }
    }
    B::End();
  }

 private:
  static constexpr int64_t kItem = kInt8 ? 1 : 2;

  static int64_t Padded(int64_t K) { return CeilDiv(K, kUnit) * kUnit; }
  static int64_t Rows(int64_t T) { return T == 0 ? 0 : CeilDiv(T, Blocks(T)); }  // of a block
  static int64_t ScaleBytes(int64_t K) {
    return kInt8 ? Padded(K) / kGroupSize * kPanel * int64_t{sizeof(uint16_t)} : 0;
  }

  // Where a panel of bf16 has output j's weight of k: [step][half][pair of k][output][of the pair].
  static int64_t Place(int64_t k, int64_t j) {
    return (k / kStepK * 2 + j / kHalf) * kTile + k % kStepK / 2 * kPanel + j % kHalf * 2 + k % 2;
  }
  // Where a panel of int8 has it: as above, but each two rows of a tile, 64 weights, stand so that
  // unpacking them within 128-bit lanes brings both in order.
  static int64_t PlaceInt8(int64_t k, int64_t j) {
    const int64_t place = Place(k, j), i = place % kPanel;
    return place / 64 * 64 + i / 8 * 16 + place % 64 / kPanel * 8 + i % 8;
  }

  static float Source(const PackParams& p, int64_t o, int64_t k) {
    return o < p.O && k < p.K ? LoadSource(p, o, k) : 0.0f;
  }

  // A byte is a sign and a size.
  static void StoreInt8(const float* values, int64_t begin, int64_t j, int64_t K, char* out) {
    float largest = 0;
    for (int64_t i = 0; i < kGroupSize; ++i) largest = Larger(largest, values[i]);
    const uint16_t scale = ScaleOf(largest);
    reinterpret_cast<uint16_t*>(out)[begin / kGroupSize * kPanel + j] = scale;
    auto* bytes = reinterpret_cast<uint8_t*>(out + ScaleBytes(K));
    for (int64_t i = 0; i < kGroupSize; ++i) {
      const int q = Quantize(values[i], FromBF16(scale));
      bytes[PlaceInt8(begin + i, j)] = static_cast<uint8_t>(q < 0 ? -q | 0x80 : q);
    }
  }

  static void Fetch(const void* at) { __builtin_prefetch(static_cast<const char*>(at) + kAhead); }

  // Adds the products of k in [begin, end) for one or two blocks; w is those k's.
  static void Steps(bool pair, const uint16_t* x, int64_t K, int64_t rows, int64_t begin,
                    int64_t end, const uint16_t* w) {
    for (int64_t k = begin; k < end; k += kStepK, w += 2 * kTile) {
      const uint16_t* x0 = x + k * rows;
      if constexpr (!kInt8) {
        for (int64_t i = 0; i < 2 * kTile; i += 32) Fetch(w + i);
      }
      if (pair) {
        B::template Step<2>(x0, x0 + rows * Padded(K), w);
      } else {
        B::template Step<1>(x0, nullptr, w);
      }
    }
  }

  static void Store(bool pair, float* y, int64_t stride) {
    if (pair) return B::template Store<2>(y, stride);
    B::template Store<1>(y, stride);
  }

  static void Panel(const MatmulParams& p, const uint16_t* x, const uint16_t* w, int64_t panel,
                    int64_t first, int64_t last) {
    const int64_t K = p.w.K, rows = Rows(p.T), o = panel * kPanel;
    const bool plain =
        o + kPanel <= p.w.O && p.bias == nullptr && p.activation == Activation::kNone;
    for (int64_t block = first; block < last; block += 2) {
      const bool pair = block + 1 < last;
      const int64_t row = block * rows, end = row + rows * (pair ? 2 : 1);
      B::Zero();
      Steps(pair, x + row * Padded(K), K, rows, 0, Padded(K), w);
      if (plain && end <= p.T) {
        Store(pair, p.y + row * p.y_stride + o, p.y_stride);
        continue;
      }
      alignas(64) float sums[2 * kMaxRows * kPanel];
      Store(pair, sums, kPanel);
      Finish(p, sums, o, row, Least(end, p.T));
    }
  }

  // A group of weights is widened once for all blocks.
  static void Int8Panel(const MatmulParams& p, const uint16_t* x, const char* w, int64_t panel,
                        int64_t first, int64_t last) {
    const int64_t K = p.w.K, rows = Rows(p.T);
    const auto* q = reinterpret_cast<const uint8_t*>(w + ScaleBytes(K));
    const auto* scales = reinterpret_cast<const uint16_t*>(w);
    alignas(64) float totals[kPairs * 2 * kMaxRows * kPanel];
    for (int64_t i = 0; i < (last - first) * rows * kPanel; ++i) totals[i] = 0;
    alignas(64) uint16_t wide[2][kGroupSize * kPanel];
    WidenGroup(q, wide[0]);
    for (int64_t k = 0; k < Padded(K); k += kGroupSize, scales += kPanel) {
      const uint16_t* here = wide[k / kGroupSize % 2];
      // The next group is widened now, so that nothing waits for what was just stored.
      if (k + kGroupSize < Padded(K))
        WidenGroup(q + (k + kGroupSize) * kPanel, wide[(k / kGroupSize + 1) % 2]);
      for (int64_t block = first; block < last; block += 2) {
        alignas(64) float sums[2 * kMaxRows * kPanel];
        const bool pair = block + 1 < last;
        B::Zero();
        Steps(pair, x + block * rows * Padded(K), K, rows, k, k + kGroupSize, here);
        Store(pair, sums, kPanel);
        AddScaled(sums, scales, rows * (pair ? 2 : 1), totals + (block - first) * rows * kPanel);
      }
    }
    Finish(p, totals, panel * kPanel, first * rows, Least(last * rows, p.T));
  }

  static void WidenGroup(const uint8_t* q, uint16_t* wide) {
    for (int64_t i = 0; i < kGroupSize * kPanel; i += 64) {
      Fetch(q + i);
      B::Widen(q + i, wide + i);
    }
  }

  static void AddScaled(const float* sums, const uint16_t* scales, int64_t rows, float* totals) {
    float scale[kPanel];
    for (int64_t j = 0; j < kPanel; ++j) scale[j] = FromBF16(scales[j]);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < kPanel; ++j)
        totals[r * kPanel + j] += sums[r * kPanel + j] * scale[j];
    }
  }

  // Rows [row, end) of the panel whose first output is o, from the sums of those rows: bias,
  // activation, and the outputs that there are.
  static void Finish(const MatmulParams& p, const float* sums, int64_t o, int64_t row,
                     int64_t end) {
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
};

}  // namespace
}  // namespace skein::kernels
