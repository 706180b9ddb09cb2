// embed, add_norm_mix and final_norm of every tier against the double loop.

#include <gtest/gtest.h>

#include "kernels/cpu/number_format.h"
#include "tests/kernels/op_cases.h"

namespace skein::kernels {
namespace {

const std::vector<int> kWidths = {1, 7, 8, 33, 64, 96, 200, 768, 1031};

class NormTest : public ::testing::TestWithParam<const Tier*> {
 protected:
  const OpTable& ops() const { return GetParam()->ops(); }
};

TEST_P(NormTest, EmbedEqualsTheDoubleLoop) {
  std::mt19937 rng(1);
  TestStream stream(2);
  for (int C : kWidths) {
    const int V = 50, T = 70;
    const Floats table = RandomFloats(V * C, rng, 3.0f, 1.0f), weight = RandomFloats(C, rng),
                 bias = RandomFloats(C, rng);
    std::vector<uint16_t> bf16(V * C), f16(V * C);
    for (int i = 0; i < V * C; ++i) {
      bf16[i] = ToBF16(table[i]);
      const _Float16 half = static_cast<_Float16>(table[i]);
      std::memcpy(&f16[i], &half, 2);
    }
    std::vector<int32_t> tokens(T);
    for (int t = 0; t < T; ++t) tokens[t] = (t * 17) % V;
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      EmbedParams p;
      p.tokens = tokens.data();
      p.num_tokens = T;
      p.embedding = dtype == DType::kF32 ? static_cast<const void*>(table.get())
                                         : (dtype == DType::kBF16 ? bf16.data() : f16.data());
      p.dtype = dtype;
      p.ln_weight = weight.get();
      p.ln_bias = bias.get();
      p.C = C;
      Floats want(T * C), got(T * C);
      p.x = want.get();
      plain::Embed<double>(p);
      p.x = got.get();
      ops().embed(p, stream);
      ExpectClose(got, want, 2e-5, "C " + std::to_string(C));
    }
  }
}

TEST_P(NormTest, FinalNormEqualsTheDoubleLoop) {
  std::mt19937 rng(2);
  TestStream stream(2);
  for (int C : kWidths) {
    const int T = 40;
    const std::vector<int32_t> index = {0, 39, 7, 7, 20};
    const Floats x = RandomFloats(T * C, rng, 5.0f, -2.0f), delta = RandomFloats(T * C, rng),
                 weight = RandomFloats(C, rng), bias = RandomFloats(C, rng);
    FinalNormParams p;
    p.index = index.data();
    p.n = static_cast<int32_t>(index.size());
    p.C = C;
    p.x = x.get();
    p.delta = delta.get();
    p.ln_weight = weight.get();
    p.ln_bias = bias.get();
    Floats want(p.n * C), got(p.n * C);
    p.out = want.get();
    plain::FinalNorm<double>(p);
    p.out = got.get();
    ops().final_norm(p, stream);
    ExpectClose(got, want, 2e-5, "C " + std::to_string(C));
  }
}

// What one call of add_norm_mix leaves behind.
struct MixResult {
  Floats x, normed, out, state;
};

struct MixCase {
  int C = 0, M = 0, num_slots = 0;
  Floats x, delta, weight, bias, mix, state;  // of all tokens and slots
  int64_t stride = 0;

  MixCase(int C, int M, int T, int num_slots, int seed) : C(C), M(M), num_slots(num_slots) {
    std::mt19937 rng(seed);
    stride = C + 24;
    x = RandomFloats(int64_t{T} * C, rng, 2.0f);
    delta = RandomFloats(int64_t{T} * C, rng);
    weight = RandomFloats(C, rng);
    bias = RandomFloats(C, rng);
    mix = RandomFloats(int64_t{M} * C, rng, 0.5f);
    state = RandomFloats(num_slots * stride, rng);
  }
  AddNormMixParams Params(const RaggedCase& batch, MixResult* r, bool with_delta) const {
    AddNormMixParams p;
    p.batch = batch.view();
    p.C = C;
    p.M = M;
    p.x = r->x.get();
    p.delta = with_delta ? delta.get() : nullptr;
    p.ln_weight = weight.get();
    p.ln_bias = bias.get();
    p.mix = mix.get();
    p.shift = {r->state.get(), stride};
    p.normed = r->normed.get();
    p.out = r->out.get();
    return p;
  }
  MixResult Start(int T) const {
    return {x, Floats(int64_t{T} * C), Floats(int64_t{M} * T * C), state};
  }
};

TEST_P(NormTest, AddNormMixEqualsTheDoubleLoop) {
  const std::vector<int> lengths = {1, 5, 1, 64, 2, 1};
  const RaggedCase batch(lengths, {4, 0, 7, 2, 1, 6});
  const int T = batch.view().num_tokens;
  int seed = 0;
  for (int C : kWidths) {
    for (int M : {1, 6}) {
      const MixCase c(C, M, T, 8, ++seed);
      for (bool with_delta : {true, false}) {
        MixResult want = c.Start(T), got = c.Start(T);
        plain::AddNormMix<double>(c.Params(batch, &want, with_delta));
        for (int threads : {1, 3}) {
          got = c.Start(T);
          TestStream stream(threads);
          ops().add_norm_mix(c.Params(batch, &got, with_delta), stream);
          const std::string what = "C " + std::to_string(C) + " M " + std::to_string(M);
          ExpectClose(got.x, want.x, 0, what + " x");
          ExpectClose(got.out, want.out, 3e-5, what + " out");
          ExpectClose(got.state, want.state, 3e-5, what + " state");
        }
      }
    }
  }
}

TEST_P(NormTest, AddNormMixDoesNotDependOnNeighboursThreadsOrCuts) {
  const int C = 200, M = 6;
  const std::vector<int> lengths = {40, 1, 23, 1};
  const RaggedCase batch(lengths, {3, 1, 0, 2});
  const int T = batch.view().num_tokens;
  const MixCase c(C, M, T, 4, 9);
  TestStream one(1), four(4);
  MixResult whole = c.Start(T), serial = c.Start(T);
  ops().add_norm_mix(c.Params(batch, &whole, true), four);
  ops().add_norm_mix(c.Params(batch, &serial, true), one);
  ExpectSameBits(serial.out, whole.out, "one thread, out");
  ExpectSameBits(serial.state, whole.state, "one thread, state");
  // Row 0 alone, in pieces of 1, 2, 3 ... tokens.
  MixResult alone = c.Start(T);
  Floats joined(int64_t{M} * 40 * C);
  for (int begin = 0, piece = 1; begin < 40; begin += piece, ++piece) {
    piece = std::min(piece, 40 - begin);
    const RaggedCase part({piece}, {3});
    Floats out(int64_t{M} * piece * C);
    AddNormMixParams p = c.Params(part, &alone, true);
    p.x += begin * C;
    p.delta += begin * C;
    p.out = out.get();
    ops().add_norm_mix(p, four);
    for (int m = 0; m < M; ++m) {
      std::memcpy(&joined[(int64_t{m} * 40 + begin) * C], &out[int64_t{m} * piece * C],
                  4 * piece * C);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int i = 0; i < 40 * C; ++i) {
      ASSERT_EQ(joined[int64_t{m} * 40 * C + i], whole.out[int64_t{m} * T * C + i])
          << m << " " << i;
    }
  }
  for (int i = 0; i < C; ++i)
    ASSERT_EQ(alone.state[3 * c.stride + i], whole.state[3 * c.stride + i]);
}

std::string TierName(const ::testing::TestParamInfo<const Tier*>& info) { return info.param->name; }
INSTANTIATE_TEST_SUITE_P(Tiers, NormTest, ::testing::ValuesIn(MachineTiers()), TierName);

}  // namespace
}  // namespace skein::kernels
