// prepare, wkv7 and norm_bonus_gate of every tier against the double loop.

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/kernels/op_cases.h"

namespace skein::kernels {
namespace {

struct Heads {
  int H, N;
};
const std::vector<Heads> kHeads = {{12, 64}, {3, 16}, {5, 32}, {2, 128}, {3, 40},
                                   {2, 7},   {4, 1},  {1, 65}, {2, 100}};

std::string Name(const Heads& h) {
  return "H " + std::to_string(h.H) + " N " + std::to_string(h.N);
}

class TimeMixTest : public ::testing::TestWithParam<const Tier*> {
 protected:
  const OpTable& ops() const { return GetParam()->ops(); }
};

struct PrepareCase {
  Floats w, k, v, a_raw, v_raw, v_first, k_k, k_a, a, b;
  PrepareCase(int T, int C, int seed, bool first_layer) : a(T * C), b(T * C) {
    std::mt19937 rng(seed);
    w = RandomFloats(T * C, rng, 4.0f);
    k = RandomFloats(T * C, rng);
    v = RandomFloats(T * C, rng);
    a_raw = RandomFloats(T * C, rng, 3.0f);
    v_raw = RandomFloats(T * C, rng, 3.0f);
    v_first = first_layer ? Floats(T * C) : RandomFloats(T * C, rng);
    k_k = RandomFloats(C, rng);
    k_a = RandomFloats(C, rng);
  }
  PrepareParams Params(const Heads& h, int T, bool first_layer) {
    PrepareParams p;
    p.T = T;
    p.H = h.H;
    p.N = h.N;
    p.w = w.get();
    p.k = k.get();
    p.v = v.get();
    p.a_raw = a_raw.get();
    p.v_raw = first_layer ? nullptr : v_raw.get();
    p.v_first = v_first.get();
    p.k_k = k_k.get();
    p.k_a = k_a.get();
    p.a = a.get();
    p.b = b.get();
    return p;
  }
};

TEST_P(TimeMixTest, PrepareEqualsTheDoubleLoop) {
  TestStream stream(3);
  int seed = 0;
  for (const Heads& h : kHeads) {
    for (int T : {1, 19}) {
      for (bool first_layer : {true, false}) {
        PrepareCase want(T, h.H * h.N, ++seed, first_layer);
        // A head of zeros must not divide by zero.
        for (int n = 0; n < h.N; ++n) want.k[n] = 0;
        PrepareCase got = want;
        plain::Prepare<double>(want.Params(h, T, first_layer));
        ops().prepare(got.Params(h, T, first_layer), stream);
        ExpectClose(got.w, want.w, 1e-6, Name(h) + " w");
        ExpectClose(got.k, want.k, 2e-6, Name(h) + " k");
        ExpectClose(got.v, want.v, 2e-6, Name(h) + " v");
        ExpectClose(got.v_first, want.v_first, 0, Name(h) + " v_first");
        ExpectClose(got.a, want.a, 2e-6, Name(h) + " a");
        ExpectClose(got.b, want.b, 2e-6, Name(h) + " b");
      }
    }
  }
}

TEST_P(TimeMixTest, PrepareStaysInRangeForExtremeInputs) {
  TestStream stream(1);
  const Heads h = {1, 8};
  PrepareCase c(1, 8, 1, false);
  const float extremes[8] = {-1e30f, -200, -88, -17, 17, 88, 200, 1e30f};
  for (int i = 0; i < 8; ++i) c.w[i] = c.a_raw[i] = c.v_raw[i] = extremes[i];
  PrepareCase want = c;
  plain::Prepare<double>(want.Params(h, 1, false));
  ops().prepare(c.Params(h, 1, false), stream);
  ExpectClose(c.w, want.w, 1e-6, "w");
  ExpectClose(c.k, want.k, 2e-6, "k");
  ExpectClose(c.v, want.v, 2e-6, "v");
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(c.w[i] >= 0.5452f && c.w[i] <= 1.0f) << c.w[i];
}

// Inputs of wkv7 in the ranges that prepare produces.
struct WkvCase {
  Heads heads;
  int64_t stride;
  Floats r, w, k, v, a, b, state, y;
  WkvCase(const Heads& h, int T, int num_slots, int seed)
      : heads(h), stride(int64_t{h.H} * h.N * h.N + 16), y(int64_t{T} * h.H * h.N) {
    std::mt19937 rng(seed);
    const int64_t n = int64_t{T} * h.H * h.N;
    r = RandomFloats(n, rng);
    w = RandomFloats(n, rng);
    for (int64_t i = 0; i < n; ++i) w[i] = 0.5452f + 0.4548f / (1 + std::exp(-w[i]));
    k = RandomFloats(n, rng, 0.5f);
    v = RandomFloats(n, rng);
    a = RandomFloats(n, rng);
    b = Floats(n);
    for (int64_t i = 0; i < n; i += h.N) {
      float norm = 0;
      for (int j = 0; j < h.N; ++j) norm += a[i + j] * a[i + j];
      for (int j = 0; j < h.N; ++j) {
        a[i + j] /= std::sqrt(norm);
        b[i + j] = -a[i + j] / (1 + std::exp(-v[i + j]));
      }
    }
    state = RandomFloats(num_slots * stride, rng, 0.3f);
  }
  Wkv7Params Params(const RaggedCase& batch, int64_t first_token = 0) {
    const int64_t skip = first_token * heads.H * heads.N;
    Wkv7Params p;
    p.batch = batch.view();
    p.H = heads.H;
    p.N = heads.N;
    p.r = r.get() + skip;
    p.w = w.get() + skip;
    p.k = k.get() + skip;
    p.v = v.get() + skip;
    p.a = a.get() + skip;
    p.b = b.get() + skip;
    p.state = {state.get(), stride};
    p.y = y.get() + skip;
    return p;
  }
};

TEST_P(TimeMixTest, Wkv7EqualsTheDoubleLoop) {
  const RaggedCase batch({1, 9, 30, 1}, {2, 5, 0, 3});
  TestStream stream(3);
  int seed = 0;
  for (const Heads& h : kHeads) {
    WkvCase want(h, batch.view().num_tokens, 6, ++seed);
    WkvCase got = want;
    plain::Wkv7<double>(want.Params(batch), 0, 4 * h.H);
    ops().wkv7(got.Params(batch), stream);
    ExpectClose(got.y, want.y, 2e-5, Name(h) + " y");
    ExpectClose(got.state, want.state, 1e-5, Name(h) + " state");
  }
}

TEST_P(TimeMixTest, Wkv7DoesNotDependOnNeighboursThreadsOrCuts) {
  std::vector<int> lengths(33, 1);
  std::vector<int32_t> slots(33);
  for (int i = 0; i < 33; ++i) slots[i] = (i * 10) % 33;
  lengths[0] = 50;
  lengths[17] = 3;
  for (const Heads& h : std::vector<Heads>{{3, 64}, {2, 40}, {2, 7}}) {
    const RaggedCase batch(lengths, slots);
    WkvCase whole(h, batch.view().num_tokens, 33, 3);
    WkvCase serial = whole, alone = whole;
    TestStream one(1), two(2);
    ops().wkv7(whole.Params(batch), two);
    ops().wkv7(serial.Params(batch), one);
    ExpectSameBits(serial.y, whole.y, Name(h) + " threads, y");
    ExpectSameBits(serial.state, whole.state, Name(h) + " threads, state");
    int64_t token = 0;
    for (size_t r = 0; r < lengths.size();
         ++r) {  // each row alone, in pieces of 1, 2, 3 ... tokens
      for (int begin = 0, piece = 1; begin < lengths[r]; begin += piece, ++piece) {
        piece = std::min(piece, lengths[r] - begin);
        ops().wkv7(alone.Params(RaggedCase({piece}, {slots[r]}), token + begin), two);
      }
      token += lengths[r];
    }
    ExpectSameBits(alone.y, whole.y, Name(h) + " alone and cut, y");
    ExpectSameBits(alone.state, whole.state, Name(h) + " alone and cut, state");
  }
}

// The largest difference as a share of the largest value.
double ErrorOf(const Floats& got, const Floats& want) {
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < want.size(); ++i) {
    difference = std::max(difference, std::abs(double{got[i]} - want[i]));
    largest = std::max(largest, std::abs(double{want[i]}));
  }
  return difference / largest;
}

TEST(ChunkedWkv7, IsNearTheDoubleLoopAndLeavesShortRowsAsTheyAre) {
  const RaggedCase batch({16, 1, 77, 15, 256}, {2, 5, 0, 3, 1});
  const auto has_chunks = [](const Tier* tier) { return tier->ops().wkv7_chunked != nullptr; };
  const std::vector<const Tier*> tiers = MachineTiers();
  const auto tier = std::find_if(tiers.begin(), tiers.end(), has_chunks);
  if (tier == tiers.end()) GTEST_SKIP() << "no tier of this machine has it";
  const OpTable& ops = (*tier)->ops();
  int seed = 20;
  for (const Heads& h : std::vector<Heads>{{3, 64}, {2, 32}, {1, 128}, {2, 40}}) {
    WkvCase want(h, batch.view().num_tokens, 6, ++seed);
    WkvCase loop = want, got = want, serial = want;
    TestStream one(1), three(3);
    plain::Wkv7<double>(want.Params(batch), 0, 5 * h.H);
    ops.wkv7(loop.Params(batch), three);
    ops.wkv7_chunked(got.Params(batch), three);
    ops.wkv7_chunked(serial.Params(batch), one);
    EXPECT_LT(ErrorOf(got.y, want.y), 5e-5) << Name(h);
    EXPECT_LT(ErrorOf(got.state, want.state), 5e-5) << Name(h);
    ExpectSameBits(serial.y, got.y, Name(h) + " threads, y");
    ExpectSameBits(serial.state, got.state, Name(h) + " threads, state");
    // Rows of 1 and 15 tokens, and heads whose size is no multiple of 32, are the loop's.
    const auto same = [&](int64_t first, int64_t tokens) {
      const int64_t C = int64_t{h.H} * h.N;
      return std::equal(got.y.get() + first * C, got.y.get() + (first + tokens) * C,
                        loop.y.get() + first * C);
    };
    EXPECT_TRUE(same(16, 1) && same(94, 15)) << Name(h);
    EXPECT_EQ(same(17, 77), h.N % 32 != 0) << Name(h);
  }
}

TEST_P(TimeMixTest, NormBonusGateEqualsTheDoubleLoopAlsoInPlace) {
  TestStream stream(2);
  std::mt19937 rng(8);
  for (const Heads& h : kHeads) {
    for (int T : {1, 40}) {
      const int C = h.H * h.N;
      Floats y = RandomFloats(T * C, rng, 3.0f, 1.0f), want(T * C), got(T * C);
      const Floats r = RandomFloats(T * C, rng), k = RandomFloats(T * C, rng, 0.3f),
                   v = RandomFloats(T * C, rng), g = RandomFloats(T * C, rng),
                   r_k = RandomFloats(C, rng, 0.3f), weight = RandomFloats(C, rng),
                   bias = RandomFloats(C, rng);
      NormBonusGateParams p;
      p.T = T;
      p.H = h.H;
      p.N = h.N;
      p.y = y.get();
      p.r = r.get();
      p.k = k.get();
      p.v = v.get();
      p.g = g.get();
      p.r_k = r_k.get();
      p.ln_weight = weight.get();
      p.ln_bias = bias.get();
      p.out = want.get();
      plain::NormBonusGate<double>(p);
      p.out = got.get();
      ops().norm_bonus_gate(p, stream);
      ExpectClose(got, want, 3e-5, Name(h));
      p.out = y.get();
      ops().norm_bonus_gate(p, stream);
      ExpectSameBits(y, got, Name(h) + " in place");
    }
  }
}

std::string TierName(const ::testing::TestParamInfo<const Tier*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Tiers, TimeMixTest, ::testing::ValuesIn(MachineTiers()), TierName);

}  // namespace
}  // namespace skein::kernels
