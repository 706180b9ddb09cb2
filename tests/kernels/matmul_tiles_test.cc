// The algorithm of the AMX tier with its tiles emulated, so that packing, blocks, edges and the
// order of sums are tested on every machine. The instructions themselves are not: matmul_test.cc
// runs the tier "amx" where the machine has it.

#include "kernels/cpu/matmul_tiles.h"

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cpu/matmul_int8_tiles.h"
#include "tests/kernels/op_cases.h"

namespace skein::kernels {
namespace {

// What the instructions do, as their manual says it: tdpbf16ps sums the even and the odd k of 16
// pairs by fused multiply-adds, then adds both to the tile.
class EmulatedTiles {
 public:
  static void Begin(int rows) {
    ASSERT_FALSE(configured_);
    ASSERT_TRUE(rows >= 1 && rows <= 16);
    configured_ = true;
    rows_ = rows;
    std::fill_n(&sums_[0][0], 4 * 256, NAN);
  }
  static void End() { configured_ = false; }
  static void Zero() { std::fill_n(&sums_[0][0], 4 * 256, 0.0f); }
  template <int kBlocks>
  static void Load(const float* sums) {
    for (int tile = 0; tile < 2 * kBlocks; ++tile) {
      for (int r = 0; r < rows_; ++r)
        std::memcpy(sums_[tile] + r * 16, sums + (tile / 2 * rows_ + r) * 32 + tile % 2 * 16, 64);
    }
  }
  template <int kBlocks>
  static void Step(const uint16_t* x0, const uint16_t* x1, const uint16_t* w, Ahead*) {
    ASSERT_TRUE(configured_);
    for (int i = 0; i < 2 * kBlocks; ++i) Dot(i < 2 ? x0 : x1, w + i % 2 * 512, sums_[i]);
  }
  template <int kBlocks>
  static void Store(float* y, int64_t stride) {
    for (int row = 0; row < kBlocks * rows_; ++row) {
      for (int half = 0; half < 2; ++half) {
        std::memcpy(y + row * stride + 16 * half, sums_[row / rows_ * 2 + half] + row % rows_ * 16,
                    64);
      }
    }
  }
  static void Narrow(const float* x, uint16_t* out) {
    for (int i = 0; i < 32; ++i) out[i] = ToBF16(x[i]);
  }
  static void LoadWeights(const int8_t* w, Ahead*) {
    ASSERT_TRUE(configured_);
    weights_ = w;
  }
  template <int kSet>
  static void LoadRows(const char* x) {
    x_[kSet] = x;
  }
  template <int kSet, int kHalf>
  static void Multiply() {
    for (int r = 0; r < rows_; ++r) {
      for (int o = 0; o < 16; ++o) {
        int32_t sum = 0;
        for (int k = 0; k < 64; ++k) {
          sum += static_cast<int8_t>(x_[kSet][r * 64 + k]) *
                 weights_[kHalf * 1024 + k / 4 * 64 + o * 4 + k % 4];
        }
        std::memcpy(&sums_[2 * kSet + kHalf][r * 16 + o], &sum, 4);
      }
    }
  }
  template <int kSet, int kHalf>
  static void StoreInts(int32_t* sums) {
    for (int r = 0; r < rows_; ++r)
      std::memcpy(sums + r * 32 + 16 * kHalf, sums_[2 * kSet + kHalf] + r * 16, 64);
  }
  static void Quantize(const float* x, float inverse, int8_t* q) {
    for (int i = 0; i < 64; ++i)
      q[i] = inverse == 0 ? 0 : static_cast<int8_t>(std::nearbyint(x[i] * inverse));
  }
  static void Activate(float* values, Activation activation) {
    for (int i = 0; i < 16; ++i) {
      const float v = values[i];
      values[i] = activation == Activation::kTanh      ? std::tanh(v)
                  : activation == Activation::kSigmoid ? 1.0f / (1.0f + std::exp(-v))
                                                       : (v < 0 ? 0.0f : v * v);
    }
  }

 private:
  // w: 16 rows of 64 bytes.
  static void Dot(const uint16_t* x, const uint16_t* w, float* sums) {
    for (int m = 0; m < rows_; ++m) {
      for (int n = 0; n < 16; ++n) {
        float even = 0, odd = 0;
        for (int k = 0; k < 16; ++k) {
          even = std::fma(FromBF16(x[m * 32 + 2 * k]), FromBF16(w[k * 32 + 2 * n]), even);
          odd = std::fma(FromBF16(x[m * 32 + 2 * k + 1]), FromBF16(w[k * 32 + 2 * n + 1]), odd);
        }
        sums[m * 16 + n] += even + odd;
      }
    }
  }

  static thread_local bool configured_;
  static thread_local int rows_;
  static thread_local float sums_[4][256];
  static thread_local const int8_t* weights_;
  static thread_local const char* x_[2];
};
thread_local bool EmulatedTiles::configured_ = false;
thread_local int EmulatedTiles::rows_ = 0;
thread_local float EmulatedTiles::sums_[4][256];
thread_local const int8_t* EmulatedTiles::weights_ = nullptr;
thread_local const char* EmulatedTiles::x_[2] = {};

struct EmulatedTier {
  template <typename F>
  static auto WithKernel(DType dtype, const F& f) {
    if (dtype == DType::kBF16) return f(TileKernel<EmulatedTiles>{});
    if (dtype == DType::kI8A8) return f(Int8TileKernel<EmulatedTiles, OneByte>{});
    return f(Int8TileKernel<EmulatedTiles, TwoBytes>{});
  }
};

OpTable EmulatedOps() {
  OpTable ops = PlainOps();
  ops.packed_bytes = BytesOfPacked<EmulatedTier>;
  ops.pack = RunPack<EmulatedTier>;
  ops.matmul = RunMatmul<EmulatedTier>;
  return ops;
}

struct Shape {
  int T, O, K;
};

// y = act(x w + bias), rows 3 apart from one another.
Floats Multiply(const OpTable& ops, const Shape& s, DType dtype, Activation activation, int first,
                int rows, Stream& stream) {
  std::mt19937 rng(s.T * 100 + s.O);
  const Floats w = RandomFloats(int64_t{s.O} * s.K, rng, 1.0f / std::sqrt(s.K));
  const Floats x = RandomFloats(int64_t{s.T} * s.K, rng);
  const Floats bias = RandomFloats(s.O, rng);
  const Packed packed(ops, w, s.O, s.K, dtype, stream);
  Floats y(int64_t{rows} * (s.O + 3));
  MatmulParams p;
  p.x = x.get() + int64_t{first} * s.K;
  p.x_stride = s.K;
  p.T = rows;
  p.w = packed.view();
  // Without a bias and an activation whole tiles go straight to y.
  if (s.O % 64 != 0) p.bias = bias.get();
  p.activation = activation;
  p.y = y.get();
  p.y_stride = s.O + 3;
  ops.matmul(&p, 1, stream);
  Floats out(int64_t{rows} * s.O);
  for (int t = 0; t < rows; ++t) {
    for (int o = 0; o < s.O; ++o) out[int64_t{t} * s.O + o] = y[int64_t{t} * (s.O + 3) + o];
    for (int gap = 0; gap < 3; ++gap)
      EXPECT_TRUE(std::isnan(y[int64_t{t} * (s.O + 3) + s.O + gap]));
  }
  return out;
}

TEST(MatmulTiles, EqualsTheDoubleLoopAndRowsDoNotDependOnOneAnother) {
  TestStream stream(2);
  OpTable reference = PlainOps();
  reference.matmul = [](const MatmulParams* p, int n, Stream&) {
    for (int i = 0; i < n; ++i) plain::Matmul<double>(p[i], 0, p[i].w.O);
  };
  int activation = 0;
  for (const Shape& s :
       {Shape{1, 1, 1}, Shape{1, 40, 64}, Shape{3, 33, 100}, Shape{16, 32, 96}, Shape{17, 70, 130},
        Shape{33, 15, 31}, Shape{300, 34, 65}, Shape{2, 64, 70}, Shape{34, 64, 64},
        Shape{259, 64, 33}, Shape{70, 70, 530}, Shape{300, 192, 290}}) {
    for (DType dtype : {DType::kBF16, DType::kI8, DType::kI8A8}) {
      const auto act =
          s.O % 64 == 0 ? Activation::kNone : static_cast<Activation>(activation++ % 4);
      const std::string what = "T " + std::to_string(s.T) + " K " + std::to_string(s.K);
      const Floats got = Multiply(EmulatedOps(), s, dtype, act, 0, s.T, stream);
      ExpectClose(got, Multiply(reference, s, dtype, act, 0, s.T, stream), 1e-5, what);
      for (const auto& [first, rows] : {std::pair(s.T - 1, 1), std::pair(s.T / 2, s.T - s.T / 2)}) {
        const Floats part = Multiply(EmulatedOps(), s, dtype, act, first, rows, stream);
        Floats want(part.size());
        std::memcpy(want.get(), got.get() + int64_t{first} * s.O, 4 * part.size());
        ExpectSameBits(part, want, what);
      }
    }
  }
}

// x in fixed point has its unit from the exponent alone: a power of two goes through exactly, up to
// where its unit would be a denormal; NaN and infinity spoil their row and no other.
TEST(MatmulTiles, Int8TakesEveryExponentAndKeepsNaN) {
  TestStream stream(1);
  const OpTable ops = EmulatedOps();
  const int O = 32, K = 64, T = 8;
  std::mt19937 rng(3);
  const Floats w = RandomFloats(int64_t{O} * K, rng), base = RandomFloats(K, rng);
  const Packed packed(ops, w, O, K, DType::kI8, stream);
  const int exponents[T] = {0, 100, -80, -140, 0, 0, 0, 0};
  Floats x(int64_t{T} * K), y(int64_t{T} * O);
  for (int i = 0; i < T * K; ++i) x[i] = std::ldexp(base[i % K], exponents[i / K]);
  x[4 * K + 7] = NAN;
  x[5 * K + 7] = std::numeric_limits<float>::infinity();
  for (int k = 0; k < K; ++k) {
    x[6 * K + k] = k == 9 ? 1.0f : 1.0f / (1 << 20);  // lost beside 1
    x[7 * K + k] = k == 9 ? 1.0f : 0.0f;
  }
  MatmulParams p;
  p.x = x.get();
  p.x_stride = K;
  p.T = T;
  p.w = packed.view();
  p.y = y.get();
  p.y_stride = O;
  ops.matmul(&p, 1, stream);
  for (int o = 0; o < O; ++o) {
    EXPECT_EQ(y[1 * O + o], std::ldexp(y[o], 100));
    EXPECT_EQ(y[2 * O + o], std::ldexp(y[o], -80));
    EXPECT_EQ(y[3 * O + o], 0);
    EXPECT_TRUE(std::isnan(y[4 * O + o]) && std::isnan(y[5 * O + o]));
    EXPECT_EQ(y[6 * O + o], y[7 * O + o]);
  }
}

}  // namespace
}  // namespace skein::kernels
