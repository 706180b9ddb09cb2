#pragma once
// How the kernels of tiles deal rows to blocks, go over weights and finish their sums, for
// matmul_tiles.h and matmul_int8_tiles.h only.

#include <cstdint>
#include <cstring>

#include "kernels/cpu/matmul_group.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

constexpr int64_t kTilePanel = 32;                       // outputs
constexpr int64_t kRowsAtOnce = 256, kPanelsAtOnce = 4;  // that take turns at the same k

// T rows are dealt evenly to the blocks, since a step takes as long as its blocks have rows.
inline int64_t RowsOfBlock(int64_t T, int64_t blocks) {
  return blocks == 0 ? 0 : CeilDiv(T, blocks);
}

// The weights of a product, panel after panel: `steps` steps of `bytes` each.
struct TileWeights {
  const char* data;
  int64_t steps, bytes;

  const char* At(int64_t panel, int64_t step) const {
    return data + (panel * steps + step) * bytes;
  }
};

// Weights that come next: a step of the kernel brings four times `bytes` from `next` on to the
// second cache.
struct Ahead {
  const char* next;
  int64_t bytes;
};

// Steps [begin, end) of a panel, for some blocks of rows.
struct Piece {
  int64_t panel, begin, end;
  int64_t block, last_block;
  Ahead ahead;
  float* sums;  // [rows of those blocks][kTilePanel]: what the panel's steps before have left there
};

// Panels [panel, last_panel) of the rows of some blocks, whose pieces have all been run.
struct Finished {
  int64_t panel, last_panel;
  int64_t block, last_block;
  const float (*sums)[kRowsAtOnce * kTilePanel];  // as in Piece, of each panel
};

// Calls run(piece) until panels [panel, last_panel) are done for blocks [block, last_block), then
// finish(finished).
//
// Weights of `depth` steps stay in the first cache while all rows go over them; the sums of rows
// wait in memory meanwhile. Panels take turns at the same steps, so that x comes to the second
// cache once for all of them. One pair of blocks goes over all steps at once.
template <typename Run, typename Finish>
void ForPiecesOf(const TileWeights& w, int64_t depth, int64_t panel, int64_t last_panel,
                 int64_t block, int64_t last_block, const Run& run, const Finish& finish) {
  constexpr int64_t kAhead = 4096, kLine = 64;  // bytes
  alignas(64) float sums[kPanelsAtOnce][kRowsAtOnce * kTilePanel];
  const int64_t pairs = CeilDiv(last_block - block, 2);
  if (pairs == 1) depth = w.steps;
  // What follows a piece is fetched by all of its pairs together; one alone fetches what it will
  // soon use itself.
  const int64_t share = CeilDiv(w.bytes, 4 * pairs * kLine) * kLine;
  const auto next = [&](int64_t i, int64_t step) {
    if (pairs == 1) return w.At(i, step) + kAhead;
    if (i + 1 < last_panel) return w.At(i + 1, step);
    return step + depth < w.steps ? w.At(panel, step + depth) : w.At(last_panel, 0);
  };
  for (int64_t step = 0; step < w.steps; step += depth) {
    for (int64_t i = panel; i < last_panel; ++i) {
      run(Piece{i,
                step,
                Least(step + depth, w.steps),
                block,
                last_block,
                {next(i, step), share},
                sums[i - panel]});
    }
  }
  finish(Finished{panel, last_panel, block, last_block, sums});
}

// The same for all blocks.
template <typename Run, typename Finish>
void ForPieces(const TileWeights& w, int64_t depth, int64_t panel, int64_t last_panel,
               int64_t blocks, int64_t rows, const Run& run, const Finish& finish) {
  const int64_t at_once = kRowsAtOnce / rows / 2 * 2;
  for (int64_t block = 0; block < blocks; block += at_once) {
    for (int64_t i = panel; i < last_panel; i += kPanelsAtOnce) {
      ForPiecesOf(w, depth, i, Least(i + kPanelsAtOnce, last_panel), block,
                  Least(block + at_once, blocks), run, finish);
    }
  }
}

// Row `row` of y from the sums of that row: bias, activation, and the outputs that there are.
// B::Activate(values, activation) is that of 16 floats.
template <class B>
void FinishRow(const MatmulParams& p, int64_t panel, int64_t row, const float* sums) {
  constexpr int64_t kHalf = kTilePanel / 2;
  const int64_t o = panel * kTilePanel, outputs = Least(kTilePanel, p.w.O - o);
  float* y = p.y + row * p.y_stride + o;
  float values[kTilePanel];
  std::memcpy(values, sums, sizeof(values));
  if (p.bias != nullptr) {
    for (int64_t j = 0; j < outputs; ++j) values[j] += p.bias[o + j];
  }
  if (p.activation != Activation::kNone) {
    B::Activate(values, p.activation);
    B::Activate(values + kHalf, p.activation);
  }
  if (outputs == kTilePanel) {
    std::memcpy(y, values, sizeof(values));
  } else {
    std::memcpy(y, values, outputs * sizeof(float));
  }
}

}  // namespace
}  // namespace skein::kernels
