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
// A backend B has the tiles and says:
//   B::Begin(rows), B::End()      around all that follows, on one thread; rows of x and of sums
//   B::Zero()                     clears the four tiles of sums [block][half]
//   B::Load<kBlocks>(sums)        [block][rows] rows of 32 floats
//   B::Step<kBlocks>(x0, x1, w, ahead)   x: [rows][32] each; w: [2 halves][16 pairs][16][2]; bf16;
//                                 fetches what is ahead (tile_rows.h) and moves on there
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

template <class B>
class TileKernel {
  static constexpr int64_t kMaxRows = 16, kHalf = 16, kStepK = 32;
  static constexpr int64_t kTile = kHalf * kStepK;  // weights of one half and one step
  static constexpr int64_t kDepth = 8;  // steps whose weights stay in the first cache, 16 KiB

 public:
  static constexpr int64_t kPanel = kTilePanel;

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
    const TileWeights w{static_cast<const char*>(p.w.data), Padded(p.w.K) / kStepK,
                        2 * kTile * int64_t{sizeof(uint16_t)}};
    B::Begin(static_cast<int>(Rows(p.T)));
    ForPieces(
        w, kDepth, begin, end, Blocks(p.T), Rows(p.T),
        [&](const Piece& piece) {
          RunPiece(p, reinterpret_cast<const uint16_t*>(packed), w.At(piece.panel, piece.begin),
                   piece);
        },
        [](const Finished&) {});
    B::End();
  }

 private:
  static int64_t Padded(int64_t K) { return CeilDiv(K, kStepK) * kStepK; }
  static int64_t Rows(int64_t T) { return RowsOfBlock(T, Blocks(T)); }

  static void RunPiece(const MatmulParams& p, const uint16_t* x, const char* w, Piece piece) {
    for (; piece.block < piece.last_block; piece.block += 2) {
      if (piece.block + 1 < piece.last_block) {
        RunBlocks<2>(p, x, reinterpret_cast<const uint16_t*>(w), &piece);
      } else {
        RunBlocks<1>(p, x, reinterpret_cast<const uint16_t*>(w), &piece);
      }
      piece.sums += 2 * Rows(p.T) * kPanel;
    }
  }

  // The first one or two blocks of a piece.
  template <int kBlocks>
  static void RunBlocks(const MatmulParams& p, const uint16_t* x, const uint16_t* w, Piece* piece) {
    const int64_t K = Padded(p.w.K), rows = Rows(p.T), row = piece->block * rows;
    if (piece->begin == 0) {
      B::Zero();
    } else {
      B::template Load<kBlocks>(piece->sums);
    }
    x += row * K + piece->begin * kStepK * rows;
    for (int64_t i = piece->begin; i < piece->end; ++i) {
      B::template Step<kBlocks>(x, x + rows * K, w, &piece->ahead);
      x += rows * kStepK;
      w += 2 * kTile;
    }
    const bool last = piece->end * kStepK == K;
    const int64_t end = row + kBlocks * rows, o = piece->panel * kPanel;
    if (last && end <= p.T && o + kPanel <= p.w.O && p.bias == nullptr &&
        p.activation == Activation::kNone) {
      return B::template Store<kBlocks>(p.y + row * p.y_stride + o, p.y_stride);
    }
    B::template Store<kBlocks>(piece->sums, kPanel);
    for (int64_t r = row; last && r < Least(end, p.T); ++r)
      FinishRow<B>(p, piece->panel, r, piece->sums + (r - row) * kPanel);
  }
};

}  // namespace
}  // namespace skein::kernels
