#include <gtest/gtest.h>

#include "kernels/cpu/number_format.h"
#include "tests/kernels/op_cases.h"

namespace skein::kernels {
namespace {

struct Shape {
  int T, O, K;
};

const std::vector<Shape> kShapes = {
    {1, 1, 1},      {1, 7, 33},    {1, 16, 16},   {1, 33, 100},   {2, 100, 7},
    {3, 64, 96},    {4, 48, 257},  {5, 17, 1},    {6, 16, 300},   {7, 31, 513},
    {8, 80, 640},   {13, 129, 40}, {32, 65, 770}, {65, 40, 1031}, {200, 24, 64},
    {250, 20, 300}, {1, 512, 768}, {29, 768, 33}, {1, 1000, 64},  {2, 130, 96},
};

const DType kTypes[] = {DType::kF32, DType::kBF16, DType::kI8, DType::kI8A8};

// One product on one tier; y has a gap of 3 between its rows, x one of 5.
Floats RunOnce(const OpTable& ops, const Shape& s, DType dtype, Activation activation, bool bias,
               int threads, int seed, bool transposed) {
  std::mt19937 rng(seed);
  TestStream stream(threads);
  const Floats w = RandomFloats(int64_t{s.O} * s.K, rng, 1.0f / std::sqrt(s.K));
  const Floats x = RandomFloats(int64_t{s.T} * (s.K + 5), rng, 2.0f);
  const Floats b = RandomFloats(s.O, rng);
  const Packed packed(ops, w, s.O, s.K, dtype, stream, transposed);
  Floats y(int64_t{s.T} * (s.O + 3));
  MatmulParams p;
  p.x = x.get();
  p.x_stride = s.K + 5;
  p.T = s.T;
  p.w = packed.view();
  p.bias = bias ? b.get() : nullptr;
  p.activation = activation;
  p.y = y.get();
  p.y_stride = s.O + 3;
  ops.matmul(&p, 1, stream);
  Floats out(int64_t{s.T} * s.O);
  for (int t = 0; t < s.T; ++t) {
    for (int o = 0; o < s.O; ++o) out[int64_t{t} * s.O + o] = y[int64_t{t} * (s.O + 3) + o];
    for (int gap = 0; gap < 3; ++gap)
      EXPECT_TRUE(std::isnan(y[int64_t{t} * (s.O + 3) + s.O + gap]));
  }
  return out;
}

// The same product by the double loop.
Floats Reference(const Shape& s, DType dtype, Activation activation, bool bias, int seed,
                 bool transposed) {
  OpTable ops = PlainOps();
  ops.matmul = [](const MatmulParams* p, int n, Stream&) {
    for (int i = 0; i < n; ++i) plain::Matmul<double>(p[i], 0, p[i].w.O);
  };
  return RunOnce(ops, s, dtype, activation, bias, 1, seed, transposed);
}

class MatmulTest : public ::testing::TestWithParam<const Tier*> {};

TEST_P(MatmulTest, EqualsTheDoubleLoop) {
  int seed = 0;
  for (const Shape& s : kShapes) {
    for (DType dtype : kTypes) {
      for (Activation activation :
           {Activation::kNone, Activation::kTanh, Activation::kSigmoid, Activation::kReluSquared}) {
        const bool bias = ++seed % 2 == 0;
        const bool transposed = seed % 3 == 0;
        const Floats want = Reference(s, dtype, activation, bias, seed, transposed);
        const Floats got =
            RunOnce(GetParam()->ops(), s, dtype, activation, bias, 2, seed, transposed);
        ExpectClose(
            got, want, 1e-5,
            "T " + std::to_string(s.T) + " O " + std::to_string(s.O) + " K " + std::to_string(s.K));
      }
    }
  }
}

TEST_P(MatmulTest, AGroupEqualsItsProductsAndRowsDoNotDependOnOneAnother) {
  const OpTable& ops = GetParam()->ops();
  std::mt19937 rng(5);
  TestStream one(1), two(2), three(3);
  for (DType dtype : kTypes) {
    const int T = 33, K = 600;
    const Floats x = RandomFloats(T * K, rng);
    const std::vector<int> widths = {1, 64, 200, 33, 16};
    std::vector<Floats> sources, whole, alone;
    std::vector<Packed> weights;
    std::vector<MatmulParams> group(widths.size());
    for (size_t i = 0; i < widths.size(); ++i) {
      sources.push_back(RandomFloats(int64_t{widths[i]} * K, rng, 0.05f));
      weights.emplace_back(ops, sources[i], widths[i], K, dtype, one);
      whole.emplace_back(int64_t{T} * widths[i]);
      alone.emplace_back(int64_t{T} * widths[i]);
      group[i].x = x.get();
      group[i].x_stride = K;
      group[i].T = T;
      group[i].w = weights[i].view();
      group[i].activation = static_cast<Activation>(i % 4);
      group[i].y = whole[i].get();
      group[i].y_stride = widths[i];
    }
    ops.matmul(group.data(), static_cast<int>(group.size()), three);
    for (size_t i = 0; i < widths.size(); ++i) {
      for (int t = 0; t < T;) {  // cuts of 1, 2, 3 ... rows, one and two threads in turn
        const int rows = std::min(T - t, 1 + t % 7);
        MatmulParams part = group[i];
        part.x = x.get() + t * K;
        part.T = rows;
        part.y = alone[i].get() + int64_t{t} * widths[i];
        ops.matmul(&part, 1, t % 2 == 0 ? one : two);
        t += rows;
      }
      ExpectSameBits(alone[i], whole[i], "product " + std::to_string(i));
    }
  }
}

TEST_P(MatmulTest, PacksEveryTypeFromUnalignedBytes) {
  const OpTable& ops = GetParam()->ops();
  TestStream stream(2);
  const int O = 35, K = 21;
  std::mt19937 rng(3);
  // Values that every type holds exactly.
  std::uniform_int_distribution<int> integer(-8, 8);
  std::vector<float> exact(O * K);
  for (float& v : exact) v = static_cast<float>(integer(rng));
  for (DType source : {DType::kF32, DType::kBF16, DType::kF16}) {
    std::vector<char> bytes(1 + exact.size() * SizeOf(source));
    for (size_t i = 0; i < exact.size(); ++i) {
      const uint16_t bf16 = ToBF16(exact[i]);
      const _Float16 f16 = static_cast<_Float16>(exact[i]);
      const void* from = source == DType::kF32
                             ? static_cast<const void*>(&exact[i])
                             : (source == DType::kBF16 ? static_cast<const void*>(&bf16) : &f16);
      std::memcpy(&bytes[1 + i * SizeOf(source)], from, SizeOf(source));
    }
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      Floats packed((ops.packed_bytes(O, K, dtype) + 3) / 4);
      PackParams pack;
      pack.source = bytes.data() + 1;
      pack.source_dtype = source;
      pack.O = O;
      pack.K = K;
      pack.dtype = dtype;
      pack.out = packed.get();
      ops.pack(pack, stream);
      // The product with unit vectors is the matrix itself.
      Floats x(K * K), y(K * O);
      for (int i = 0; i < K * K; ++i) x[i] = i / K == i % K ? 1.0f : 0.0f;
      MatmulParams p;
      p.x = x.get();
      p.x_stride = K;
      p.T = K;
      p.w = {O, K, dtype, packed.get()};
      p.y = y.get();
      p.y_stride = O;
      ops.matmul(&p, 1, stream);
      for (int k = 0; k < K; ++k) {
        for (int o = 0; o < O; ++o) ASSERT_EQ(y[k * O + o], exact[o * K + k]);
      }
    }
  }
}

TEST_P(MatmulTest, PiecesMakeTheBytesOfTheWhole) {
  const OpTable& ops = GetParam()->ops();
  TestStream stream(2);
  const int O = 3 * kPackRows + 5, K = 150;
  std::mt19937 rng(9);
  const Floats source = RandomFloats(O * K, rng);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
    const int64_t bytes = ops.packed_bytes(O, K, dtype);
    Floats whole((bytes + 3) / 4), pieces((bytes + 3) / 4);
    std::memset(whole.get(), 0, bytes);
    std::memset(pieces.get(), 0, bytes);
    PackParams pack;
    pack.source = source.get();
    pack.O = O;
    pack.K = K;
    pack.dtype = dtype;
    pack.out = whole.get();
    ops.pack(pack, stream);
    pack.out = pieces.get();
    const int cuts[] = {0, kPackRows, 3 * kPackRows, O};
    for (int i = 0; i < 3; ++i) {
      const int first = cuts[i], last = cuts[i + 1];
      Floats rows((last - first) * K);  // only these are there
      std::memcpy(rows.get(), source.get() + first * K, rows.size() * 4);
      pack.source = rows.get();
      pack.first = first;
      pack.last = last;
      ops.pack(pack, stream);
    }
    EXPECT_EQ(std::memcmp(whole.get(), pieces.get(), bytes), 0) << static_cast<int>(dtype);
  }
}

TEST_P(MatmulTest, Int8IsWithinHalfAStepAndTheSameOnEveryTier) {
  TestStream stream(2);
  const int O = 70, K = 150;  // two groups and a part of one
  std::mt19937 rng(8);
  Floats source = RandomFloats(O * K, rng);
  for (int k = 64; k < 128; ++k) source[3 * K + k] = 0;  // an empty group
  for (int k = 0; k < 64; ++k) source[5 * K + k] = k == 7 ? -1000.0f : 3.0f;
  Floats unit(K * K), want(K * O), got(K * O);
  for (int i = 0; i < K * K; ++i) unit[i] = i / K == i % K ? 1.0f : 0.0f;
  for (int i = 0; i < 4; ++i) {
    const bool plain = i % 2 == 0;
    // The one and nothing else of a group is exact in 8 bits too, up to the rounding of 1 / 127.
    const DType dtype = i < 2 ? DType::kI8A8 : DType::kI8;
    const OpTable& ops = plain ? PlainOps() : GetParam()->ops();
    const Packed packed(ops, source, O, K, dtype, stream);
    MatmulParams p;
    p.x = unit.get();
    p.x_stride = K;
    p.T = K;
    p.w = packed.view();
    p.y = plain ? want.get() : got.get();
    p.y_stride = O;
    ops.matmul(&p, 1, stream);
    if (dtype == DType::kI8A8 && !plain) ExpectClose(got, want, 1e-6, "weights, 8 bits of x");
  }
  ExpectSameBits(got, want, "weights");
  for (int o = 0; o < O; ++o) {
    for (int k = 0; k < K; ++k) {
      float largest = 0;
      for (int i = k / 64 * 64; i < std::min(K, k / 64 * 64 + 64); ++i)
        largest = std::max(largest, std::abs(source[o * K + i]));
      // Half a step of largest / 127, which bf16 rounds up by a 128th at most.
      ASSERT_LE(std::abs(want[k * O + o] - source[o * K + k]), largest / 127 * 0.505f);
    }
  }
}

TEST_P(MatmulTest, Int8ProductsHaveTheSameBitsOnEveryTierWithVectors) {
  const Tier* first = MachineTiers().size() > 1 ? MachineTiers()[1] : GetParam();
  if (GetParam() == MachineTiers()[0]) return;  // plain loops fuse no multiply-add
  for (DType dtype : {DType::kI8, DType::kI8A8}) {
    for (const Shape& s : {Shape{1, 70, 768}, Shape{29, 33, 150}}) {
      const auto run = [&](const Tier* tier) {
        return RunOnce(tier->ops(), s, dtype, Activation::kNone, true, 2, 7, false);
      };
      ExpectSameBits(run(GetParam()), run(first), "T " + std::to_string(s.T));
    }
  }
}

TEST_P(MatmulTest, KeepsNaNAndInfinity) {
  const OpTable& ops = GetParam()->ops();
  TestStream stream(1);
  std::mt19937 rng(1);
  const int O = 20, K = 40;
  const Floats w = RandomFloats(O * K, rng);
  for (DType dtype : kTypes) {
    const Packed packed(ops, w, O, K, dtype, stream);
    for (Activation activation :
         {Activation::kNone, Activation::kTanh, Activation::kSigmoid, Activation::kReluSquared}) {
      Floats x = RandomFloats(3 * K, rng), y(3 * O);
      x[0 * K + 5] = FloatOf(0x7fffffffu);  // the NaN that careless rounding turns into a number
      x[1 * K + 9] = std::numeric_limits<float>::infinity();
      MatmulParams p;
      p.x = x.get();
      p.x_stride = K;
      p.T = 3;
      p.w = packed.view();
      p.activation = activation;
      p.y = y.get();
      p.y_stride = O;
      ops.matmul(&p, 1, stream);
      for (int o = 0; o < O; ++o) {
        EXPECT_TRUE(std::isnan(y[o]));
        if (activation == Activation::kNone && IsInt8(dtype)) {
          EXPECT_FALSE(std::isfinite(y[O + o]));  // a weight may be rounded to zero
        } else if (activation == Activation::kNone) {
          EXPECT_TRUE(std::isinf(y[O + o]));
        }
        EXPECT_TRUE(std::isfinite(y[2 * O + o]));
      }
    }
  }
}

// Wherever it lies among the 64 that share a scale.
TEST_P(MatmulTest, AWeightThatIsNoNumberSpoilsItsOutput) {
  const OpTable& ops = GetParam()->ops();
  TestStream stream(1);
  std::mt19937 rng(2);
  const int O = 3, K = 100;
  const Floats x = RandomFloats(K, rng);
  for (DType dtype : kTypes) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      for (int k : {0, 40, 63, 64, 99}) {
        Floats w = RandomFloats(O * K, rng), y(O);
        w[K + k] = bad;
        const Packed packed(ops, w, O, K, dtype, stream);
        MatmulParams p;
        p.x = x.get();
        p.x_stride = K;
        p.T = 1;
        p.w = packed.view();
        p.y = y.get();
        p.y_stride = O;
        ops.matmul(&p, 1, stream);
        EXPECT_TRUE(std::isfinite(y[0]) && std::isfinite(y[2]));
        EXPECT_FALSE(std::isfinite(y[1])) << bad << " at " << k;
      }
    }
  }
}

TEST(NumberFormat, BF16RoundsToNearestEven) {
  EXPECT_EQ(ToBF16(1.0f), 0x3f80);
  EXPECT_EQ(ToBF16(FloatOf(0x3f808000u)), 0x3f80);  // tie: even
  EXPECT_EQ(ToBF16(FloatOf(0x3f818000u)), 0x3f82);  // tie: even
  EXPECT_EQ(ToBF16(FloatOf(0x3f808001u)), 0x3f81);
  EXPECT_EQ(ToBF16(FloatOf(0x7f7fffffu)), 0x7f80);  // overflows to infinity
  EXPECT_TRUE(std::isnan(FromBF16(ToBF16(FloatOf(0x7f800001u)))));
}

TEST(NumberFormat, F16EqualsTheCompiler) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    _Float16 native;
    std::memcpy(&native, &half, 2);
    const float want = static_cast<float>(native), got = FromF16(half);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(got));
    } else {
      ASSERT_EQ(BitsOf(got), BitsOf(want)) << bits;
    }
  }
}

std::string TierName(const ::testing::TestParamInfo<const Tier*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Tiers, MatmulTest, ::testing::ValuesIn(MachineTiers()), TierName);

}  // namespace
}  // namespace skein::kernels
