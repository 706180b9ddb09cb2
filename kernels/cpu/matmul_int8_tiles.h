#pragma once
// The matmul kernels of int8 weights in tile registers (AMX-INT8), for matmul_amx.cc and its test
// only. A tile is up to 16 rows of 64 bytes: bytes of x for 64 k, 16 quads of k by 16 outputs of
// weights, or sums of 32 bits. Weights go from memory to their tiles as they are.
//
// With weights of int8 alone (TwoBytes) x stays as exact as the weights deserve: the 64 k of a row
// that share a scale of weights are held in fixed point of 14 bits and a sign, whose unit is the
// power of two that their largest needs. Its high and its low byte, both signed, are two rows of a
// tile, and the whole numbers that come of them are joined again without loss:
//
//   sum_k x q = unit * (256 * sum_k high q + sum_k low q),   |...| <= 64 * 127 * 2^14 < 2^31
//
// A bf16 down to 1/64 of the largest is held exactly; a smaller one is off by at most 1/2^14 of the
// largest, a small part of what rounding the weights to int8 takes from their product.
//
// W8A8 (OneByte): x is whole numbers of 8 bits times a unit (StepOf in number_format.h), one row of
// a tile.
//
// An output element is a chain over groups of 64 k, each times its unit and its scale. A row of a
// tile is computed by itself, so results depend neither on the number of rows nor on threads.
//
// A backend B has the tiles and says:
//   B::Begin(rows), B::End()         around all that follows, on one thread; rows of x and of sums
//   B::LoadWeights(w, ahead)         [2 halves][16 quads][16][4]; fetches what is ahead
//                                    (tile_rows.h) and moves on there
//   B::LoadRows<kSet>(x)             [rows][64], for one of the two sets of tiles
//   B::Multiply<kSet, kHalf>()       those rows by a half of the weights, from zero
//   B::StoreInts<kSet, kHalf>(sums)  of the last Multiply of both: that half of [rows][32]
//   B::Quantize(x, inverse, q)       64 numbers x * inverse, to the nearest
//   B::Activate(values, activation)  16 floats

#include <cstdint>

#include "kernels/cpu/matmul_group.h"
#include "kernels/cpu/number_format.h"
#include "kernels/cpu/tile_rows.h"
#include "kernels/ops.h"

namespace skein::kernels {
namespace {

// Forms of a row of x. Pack fills its rows of a tile, which lie `stride` apart, and its unit; Join
// makes one number of the sums of those rows.

struct OneByte {
  static constexpr int64_t kTileRows = 1;
  template <class B>
  static void Pack(const float* x, int64_t depth, float* unit, int8_t* row, int64_t) {
    *unit = QuantizeInput<B>(x, depth, row);
  }
  static int32_t Join(const int32_t* sum, int64_t) { return *sum; }
};

struct TwoBytes {
  static constexpr int64_t kTileRows = 2;
  template <class B>
  static void Pack(const float* x, int64_t depth, float* unit, int8_t* high, int64_t stride) {
    int8_t* low = high + stride;
    int16_t q[kGroupSize];
    *unit = ToFixedPoint(x, depth, q);
    for (int64_t i = 0; i < kGroupSize; ++i) {
      high[i] = static_cast<int8_t>((q[i] + 128) >> 8);
      low[i] = static_cast<int8_t>(q[i]);
    }
  }
  static int32_t Join(const int32_t* high, int64_t stride) { return *high * 256 + high[stride]; }
};

template <class B, class Form>
class Int8TileKernel {
  static constexpr int64_t kMaxRows = 16 / Form::kTileRows, kHalf = 16;
  static constexpr int64_t kTile = kHalf * kGroupSize;  // weights of one half and one group
  static constexpr int64_t kDepth = 4;  // groups whose weights stay in the first cache

 public:
  static constexpr int64_t kPanel = kTilePanel;

 private:
  struct Weights {            // one group of a panel
    uint16_t scales[kPanel];  // bf16
    int8_t q[2 * kTile];
  };
  struct Units {  // of one group of a block of x; kTileRows times [rows] rows of bytes follow
    float of_row[16];
  };
  static_assert(sizeof(Weights) % 64 == 0 && sizeof(Units) == 64);

 public:
  static int64_t PanelBytes(int64_t K) { return Groups(K) * int64_t{sizeof(Weights)}; }

  static void PackPanel(const PackParams& p, int64_t panel, char* out) {
    for (int64_t group = 0; group < Groups(p.K); ++group) {
      auto* weights = reinterpret_cast<Weights*>(out) + group;
      for (int64_t j = 0; j < kPanel; ++j) {
        int8_t values[kGroupSize], *q = weights->q + j / kHalf * kTile + j % kHalf * 4;
        weights->scales[j] = QuantizeWeights(p, panel * kPanel + j, group * kGroupSize, values);
        for (int64_t i = 0; i < kGroupSize; ++i) q[i / 4 * kHalf * 4 + i % 4] = values[i];
      }
    }
  }

  static int64_t Blocks(int64_t T) { return CeilDiv(T, kMaxRows); }
  static int64_t InputBytes(int64_t T, int64_t K) {
    return Blocks(T) * Groups(K) * GroupBytes(Rows(T));
  }
  static double Nanoseconds(int64_t T) {
    const double read = 0.05 * kPanel, add = 0.1 * static_cast<double>(T);
    return read > add ? read : add;
  }

  // [block][group]: units and bytes.
  static void PackRows(const MatmulParams& p, int64_t begin, int64_t end, char* packed) {
    const int64_t K = p.w.K, rows = Rows(p.T);
    for (int64_t row = begin * rows; row < end * rows; ++row) {
      char* to = packed + row / rows * Groups(K) * GroupBytes(rows);
      for (int64_t k = 0; k < K; k += kGroupSize, to += GroupBytes(rows)) {
        const int64_t depth = row < p.T ? Least(kGroupSize, K - k) : 0;
        auto* bytes = reinterpret_cast<int8_t*>(to) + sizeof(Units);
        Form::template Pack<B>(p.x + row * p.x_stride + k, depth,
                               reinterpret_cast<Units*>(to)->of_row + row % rows,
                               bytes + row % rows * kGroupSize, rows * kGroupSize);
      }
    }
  }

  static void RunPanels(const MatmulParams& p, const char* packed, int64_t begin, int64_t end) {
    const TileWeights w{static_cast<const char*>(p.w.data), Groups(p.w.K), sizeof(Weights)};
    B::Begin(static_cast<int>(Form::kTileRows * Rows(p.T)));
    const int64_t rows = Rows(p.T);
    ForPieces(
        w, kDepth, begin, end, Blocks(p.T), rows,
        [&](const Piece& piece) {
          const auto* weights = reinterpret_cast<const Weights*>(w.At(piece.panel, piece.begin));
          RunPiece(packed, w.steps, weights, rows, piece);
        },
        [&](const Finished& finished) { Finish(p, finished, rows); });
    B::End();
  }

 private:
  static int64_t Groups(int64_t K) { return CeilDiv(K, kGroupSize); }
  static int64_t Rows(int64_t T) { return RowsOfBlock(T, Blocks(T)); }
  static int64_t GroupBytes(int64_t rows) {
    return int64_t{sizeof(Units)} + Form::kTileRows * rows * kGroupSize;
  }

  static void RunPiece(const char* packed, int64_t groups, const Weights* weights, int64_t rows,
                       const Piece& piece) {
    if (piece.begin == 0) {
      const int64_t count = (piece.last_block - piece.block) * rows;
      for (int64_t i = 0; i < count * kPanel; ++i) piece.sums[i] = 0;
    }
    if (rows == kMaxRows) {
      RunTurns<kMaxRows>(packed, groups, weights, rows, piece);
    } else {
      RunTurns<0>(packed, groups, weights, rows, piece);
    }
  }

  // To y row by row: its panels lie beside one another there.
  static void Finish(const MatmulParams& p, const Finished& f, int64_t rows) {
    const int64_t begin = f.block * rows, end = Least(f.last_block * rows, p.T);
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t i = f.panel; i < f.last_panel; ++i)
        FinishRow<B>(p, i, row, f.sums[i - f.panel] + (row - begin) * kPanel);
    }
  }

  // Blocks of kRows rows, known to the compiler; 0: of `rows`.
  template <int64_t kRows>
  static void RunTurns(const char* packed, int64_t groups, const Weights* weights, int64_t rows,
                       Piece piece) {
    const int64_t step = GroupBytes(kRows > 0 ? kRows : rows);
    Turns<kRows> turns(rows);
    float* totals = piece.sums;
    for (; piece.block < piece.last_block; piece.block += 2, totals += 2 * rows * kPanel) {
      const char* x = packed + (piece.block * groups + piece.begin) * step;
      if (piece.block + 1 < piece.last_block) {
        for (int64_t i = 0; i < piece.end - piece.begin; ++i) {
          turns.Load(weights[i], &piece.ahead);
          turns.template Take<0>(x + i * step, totals);
          turns.template Take<1>(x + (groups + i) * step, totals + rows * kPanel);
        }
        continue;
      }
      for (int64_t i = 0; i < piece.end - piece.begin; i += 2) {
        turns.Load(weights[i], &piece.ahead);
        turns.template Take<0>(x + i * step, totals);
        if (i + 1 == piece.end - piece.begin) return turns.template End<1>();
        turns.Load(weights[i + 1], &piece.ahead);
        turns.template Take<1>(x + (i + 1) * step, totals);
      }
    }
    turns.template End<0>();
  }

  // Blocks of x by groups of weights, one after the other. What a turn does waits for nothing else
  // that it does: one set of tiles goes to memory and multiplies again, and what the other one has
  // left there is scaled and added. Sets 0 and 1 take turns.
  template <int64_t kRows>
  class Turns {
   public:
    explicit Turns(int64_t rows) : rows_(rows) {}

    void Load(const Weights& w, Ahead* ahead) {
      B::LoadWeights(w.q, ahead);
      load_ = (load_ + 1) % 4;
      for (int64_t j = 0; j < kPanel; ++j) scales_[load_][j] = FromBF16(w.scales[j]);
    }
    // Totals += x times the weights loaded last; after End() they are.
    template <int kSet>
    void Take(const char* x, float* totals) {
      Set& set = sets_[kSet];
      const Set& other = sets_[1 - kSet];
      B::template LoadRows<kSet>(x + sizeof(Units));
      B::template StoreInts<kSet, 0>(set.sums);
      B::template Multiply<kSet, 0>();
      Add(other, 0, rows() / 2);
      B::template StoreInts<kSet, 1>(set.sums);
      B::template Multiply<kSet, 1>();
      Add(other, rows() / 2, rows());
      set.in_memory = set.in_tiles;
      set.in_tiles = {reinterpret_cast<const Units*>(x)->of_row, scales_[load_], totals};
    }
    // Set kSet would be next.
    template <int kSet>
    void End() {
      Add(sets_[1 - kSet], 0, rows());
      AddTiles<kSet>();
      AddTiles<1 - kSet>();
    }

   private:
    struct Place {  // where sums belong
      const float* units = nullptr;
      const float* scales = nullptr;
      float* totals = nullptr;
    };
    struct Set {
      Place in_tiles, in_memory;
      alignas(64) int32_t sums[16 * kPanel];  // [rows of a tile][kPanel]
    };

    int64_t rows() const { return kRows > 0 ? kRows : rows_; }

    template <int kSet>
    void AddTiles() {
      Set& set = sets_[kSet];
      B::template StoreInts<kSet, 0>(set.sums);
      B::template StoreInts<kSet, 1>(set.sums);
      set.in_memory = set.in_tiles;
      Add(set, 0, rows());
    }

    // Rows [begin, end).
    void Add(const Set& set, int64_t begin, int64_t end) const {
      const Place& to = set.in_memory;
      if (to.totals == nullptr) return;
      float scales[kPanel];
      for (int64_t j = 0; j < kPanel; ++j) scales[j] = to.scales[j];
      for (int64_t r = begin; r < end; ++r) {
        const float unit = to.units[r];
        const int32_t* sums = set.sums + r * kPanel;
        float* totals = to.totals + r * kPanel;
        for (int64_t j = 0; j < kPanel; ++j) {
          const auto whole = static_cast<float>(Form::Join(sums + j, rows() * kPanel));
          totals[j] += whole * (unit * scales[j]);
        }
      }
    }

    const int64_t rows_;
    int load_ = 0;
    alignas(64) float scales_[4][kPanel];  // of the last four weights: that many are on their way
    Set sets_[2];
  };
};

}  // namespace
}  // namespace skein::kernels
