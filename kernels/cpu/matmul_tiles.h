#pragma once
// The matmul kernel of bf16 weights in tile registers (AMX), for matmul_amx.cc and its test only. A
// tile is up to 16 rows of 64 bytes: rows of x by 32 k in bf16, 16 pairs of k by 16 outputs of
// weights, or rows by 16 sums. One step adds the products of 32 k to two tiles of outputs for one
// or two blocks of rows.
//
// A row of a tile is computed by itself, so results depend neither on the number of rows nor on
// threads. An output element is a chain over blocks of 32 k, of each of which the instruction makes
// one number: the sum of the even k's chain and of the odd k's.
//
// Weights of 256 k of a panel (16 KiB) stay in the first cache while all rows go over them; the
// sums of rows wait in memory meanwhile, exactly. Some panels take turns at the same k, so that x
// comes to the second cache once for all of them. One pair of blocks goes over all k at once, and
// its sums stay in the tiles.
//
// A backend B has the tiles and says:
//   B::Begin(rows), B::End()      around all that follows, on one thread; rows of x and of sums
//   B::Zero()                     clears the four tiles of sums [block][half]
//   B::Load<kBlocks>(sums)        [block][rows] rows of 32 floats
//   B::Step<kBlocks>(x0, x1, w, ahead)   x: [rows][32] each; w: [2 halves][16 pairs][16][2]; bf16
//   B::Store<kBlocks>(y, stride)  [block][rows] rows of 32 floats, `stride` floats apart
//   B::Narrow(x, out)             32 floats to bf16
//   B::Activate(values, activation)  16 floats

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/cpu/tile_rows.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

// Weights that come next: a step brings four times `bytes` from `next` on to the second cache.
struct Ahead {
  const char* next;
  int64_t bytes;
};

template <class B>
class TileKernel {
  static constexpr int64_t kMaxRows = 16, kHalf = 16, kStepK = 32;
  static constexpr int64_t kTile = kHalf * kStepK;     // weights of one half and one step
  static constexpr int64_t kDepth = 256;               // k of a panel that stay in the first cache
  static constexpr int64_t kBlocks = 16, kSide = 4;    // blocks and panels that take turns at them
  static constexpr int64_t kAhead = 4096, kLine = 64;  // bytes

 public:
  static constexpr int64_t kPanel = 2 * kHalf;

  static int64_t PanelBytes(int64_t K) { return Padded(K) * kPanel * 2; }

  // [step of K][half][pair of k][output][of the pair]; K is filled up with zeros to whole steps.
  static void PackPanel(const PackParams& p, int64_t panel, char* out) {
    auto* w = reinterpret_cast<uint16_t*>(out);
    // A step of one output after the other: rows of the source may lie a multiple of 4 KiB apart,
    // where the first cache holds lines of few of them at a time.
    for (int64_t k = 0; k < Padded(p.K); k += kStepK, w += 2 * kTile) {
      for (int64_t j = 0; j < kPanel; ++j) {
        float values[kStepK];
        LoadSourceRow<kStepK>(p, panel * kPanel + j, k, values);
        uint16_t* to = w + j / kHalf * kTile + j % kHalf * 2;
        for (int64_t i = 0; i < kStepK; ++i) to[i / 2 * kPanel + i % 2] = ToBF16(values[i]);
      }
    }
  }

  static int64_t Blocks(int64_t T) { return CeilDiv(T, kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) { return Blocks(T) * Rows(T) * Padded(K) * 2; }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel * 2, add = 0.05 * static_cast<double>(T);
    return read > add ? read : add;
  }

  // [block][step of K][rows][32], bf16.
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K, rows = Rows(p.T);
    for (int64_t row = begin * rows; row < end * rows; ++row) {
      auto* to =
          reinterpret_cast<uint16_t*>(packed) + row / rows * rows * Padded(K) + row % rows * kStepK;
      const float* x = p.x + row * p.x_stride;
      for (int64_t k = 0; k < K; k += kStepK, to += rows * kStepK) {
        const int64_t depth = row < p.T ? Least(kStepK, K - k) : 0;
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
    B::Begin(static_cast<int>(Rows(p.T)));
    for (int64_t block = 0; block < Blocks(p.T); block += kBlocks) {
      for (int64_t panel = begin; panel < end; panel += kSide) {
        RunPart(p, reinterpret_cast<const uint16_t*>(packed),
                {panel, Least(panel + kSide, end), block, Least(block + kBlocks, Blocks(p.T))});
      }
    }
    B::End();
  }

 private:
  // Some panels for some blocks of rows.
  struct Part {
    int64_t panel, last_panel, block, last_block;
  };
  // k in [begin, end) of a panel.
  struct Piece {
    int64_t panel, begin, end;
  };

  static int64_t Padded(int64_t K) { return CeilDiv(K, kStepK) * kStepK; }
  static int64_t Rows(int64_t T) { return RowsOfBlock(T, Blocks(T)); }
  static const char* WeightsAt(const MatmulParams& p, int64_t panel, int64_t k) {
    return static_cast<const char*>(p.w.data) + panel * PanelBytes(p.w.K) + k * kPanel * 2;
  }

  static void RunPart(const MatmulParams& p, const uint16_t* x, const Part& part) {
    alignas(64) float sums[kSide][kBlocks * kMaxRows * kPanel];
    const int64_t K = Padded(p.w.K), pairs = CeilDiv(part.last_block - part.block, 2);
    const int64_t depth = pairs == 1 ? K : kDepth;
    const int64_t share = CeilDiv(2 * 2 * kTile / kLine, 4 * pairs) * kLine;
    for (int64_t k = 0; k < K; k += depth) {
      for (int64_t panel = part.panel; panel < part.last_panel; ++panel) {
        const char* next = pairs == 1 ? WeightsAt(p, panel, k) + kAhead : After(p, part, panel, k);
        RunPiece(p, x, part, {panel, k, Least(k + depth, K)}, {next, share},
                 sums[panel - part.panel]);
      }
    }
  }

  // The weights that follow those of a panel from k on.
  static const char* After(const MatmulParams& p, const Part& part, int64_t panel, int64_t k) {
    if (panel + 1 < part.last_panel) return WeightsAt(p, panel + 1, k);
    if (k + kDepth < p.w.K) return WeightsAt(p, part.panel, k + kDepth);
    return WeightsAt(p, part.last_panel, 0);
  }

  // Two blocks at a time. All of them together fetch what is ahead.
  static void RunPiece(const MatmulParams& p, const uint16_t* x, const Part& part,
                       const Piece& piece, Ahead ahead, float* sums) {
    for (int64_t block = part.block; block < part.last_block; block += 2) {
      if (block + 1 < part.last_block) {
        RunBlocks<2>(p, x, piece, block, &ahead, sums);
      } else {
        RunBlocks<1>(p, x, piece, block, &ahead, sums);
      }
      sums += 2 * Rows(p.T) * kPanel;
    }
  }

  // One or two blocks. `sums` has theirs of the k before.
  template <int kBlocks>
  static void RunBlocks(const MatmulParams& p, const uint16_t* x, const Piece& piece, int64_t block,
                        Ahead* ahead, float* sums) {
    const int64_t K = Padded(p.w.K), rows = Rows(p.T), row = block * rows, o = piece.panel * kPanel;
    if (piece.begin == 0) {
      B::Zero();
    } else {
      B::template Load<kBlocks>(sums);
    }
    x += row * K + piece.begin * rows;
    const auto* w = reinterpret_cast<const uint16_t*>(WeightsAt(p, piece.panel, piece.begin));
    for (int64_t k = piece.begin; k < piece.end; k += kStepK) {
      B::template Step<kBlocks>(x, x + rows * K, w, ahead);
      x += rows * kStepK;
      w += 2 * kTile;
    }
    const int64_t end = row + kBlocks * rows;
    if (piece.end == K && end <= p.T && o + kPanel <= p.w.O && p.bias == nullptr &&
        p.activation == Activation::kNone) {
      return B::template Store<kBlocks>(p.y + row * p.y_stride + o, p.y_stride);
    }
    B::template Store<kBlocks>(sums, kPanel);
    if (piece.end == K) FinishTiles<B>(p, sums, o, row, Least(end, p.T));
  }
};

}  // namespace
}  // namespace skein::kernels
