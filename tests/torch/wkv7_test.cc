// The chunked WKV-7 of every tier against the step-by-step recurrence in double, forward and
// backward.

#include "kernels/train/plain.h"
#include "tests/torch/arrays.h"

namespace skein::kernels::train {
namespace {

// How the inputs of one case are made.
enum class Kind { kRandom, kReset, kResetEverywhere, kRepeated, kNoState };

struct Case {
  int64_t B, T, H, N;
  Kind kind;
};

// Inputs of a case: r, w_raw, k, v, a, b, state, d_y, d_final_state.
struct Inputs {
  std::vector<Doubles> values;
  std::unique_ptr<bool[]> reset;
};

// a = -kk and b = kk * gate, with kk of length one per head.
void MakeRemoval(const Case& c, Random& random, Doubles* a, Doubles* b) {
  const int64_t n = c.B * c.T * c.H * c.N;
  *a = random.Normal(n);
  *b = random.Uniform(n);
  for (int64_t head = 0; head < n; head += c.N) {
    double squares = 0;
    for (int64_t i = head; i < head + c.N; ++i) squares += (*a)[i] * (*a)[i];
    for (int64_t i = head; i < head + c.N; ++i) {
      const double kk = (*a)[i] / std::sqrt(squares);
      (*a)[i] = static_cast<float>(-kk);
      (*b)[i] = static_cast<float>(kk * (*b)[i]);
    }
  }
}

Inputs MakeInputs(const Case& c) {
  Random random(c.T * 1000 + c.N + static_cast<int>(c.kind));
  const int64_t n = c.B * c.T * c.H * c.N, states = c.B * c.H * c.N * c.N;
  Inputs in;
  for (int i = 0; i < 4; ++i) in.values.push_back(random.Normal(n));
  Doubles a, b;
  MakeRemoval(c, random, &a, &b);
  if (c.kind == Kind::kRepeated) {
    // One token again and again: equal kk, gate and decay near 1.
    for (int64_t i = 0; i < n; ++i) {
      const int64_t first = i % (c.H * c.N);
      in.values[1][i] = -9;
      in.values[2][i] = in.values[2][first];
      a[i] = a[first];
      b[i] = static_cast<float>(-a[first] * 0.999);
    }
  }
  in.values.push_back(a);
  in.values.push_back(b);
  in.values.push_back(random.Normal(states));
  in.values.push_back(random.Normal(n));
  in.values.push_back(random.Normal(states));
  if (c.kind == Kind::kReset) in.reset = random.Flags(c.B * c.T, 0.12);
  if (c.kind == Kind::kResetEverywhere) in.reset = random.Flags(c.B * c.T, 1);
  return in;
}

template <class Real>
Wkv7Backward<Real> Params(const Case& c, const Inputs& in, Arrays<Real>& arrays) {
  const int64_t n = c.B * c.T * c.H * c.N, states = c.B * c.H * c.N * c.N;
  Wkv7Backward<Real> q;
  Wkv7Forward<Real>& p = q.forward;
  p.B = c.B, p.T = c.T, p.H = c.H, p.N = c.N;
  p.r = arrays.In(in.values[0]), p.w_raw = arrays.In(in.values[1]);
  p.k = arrays.In(in.values[2]), p.v = arrays.In(in.values[3]);
  p.a = arrays.In(in.values[4]), p.b = arrays.In(in.values[5]);
  if (c.kind != Kind::kNoState) p.state = arrays.In(in.values[6]);
  p.reset = in.reset.get();
  p.y = arrays.Out(n), p.final_state = arrays.Out(states);
  p.chunk_states = arrays.Out(states * ((c.T + kChunk - 1) / kChunk)), p.sa = arrays.Out(n);
  q.d_y = arrays.In(in.values[7]);
  if (c.kind != Kind::kNoState) q.d_final_state = arrays.In(in.values[8]);
  q.d_r = arrays.Out(n), q.d_w_raw = arrays.Out(n), q.d_k = arrays.Out(n);
  q.d_v = arrays.Out(n), q.d_a = arrays.Out(n), q.d_b = arrays.Out(n);
  q.d_state = arrays.Out(states);
  return q;
}

class Wkv7 : public testing::TestWithParam<Case> {};

TEST_P(Wkv7, EveryTierEqualsTheRecurrence) {
  const Case& c = GetParam();
  const Inputs in = MakeInputs(c);
  const int64_t tasks = c.B * c.H;
  Arrays<double> expected, chunked;
  auto q = Params(c, in, expected);
  RecurrentWkv7(q.forward, 0, tasks);
  RecurrentWkv7Grad(q, 0, tasks);
  auto p = Params(c, in, chunked);
  ChunkedWkv7(p.forward, 0, tasks);
  ChunkedWkv7Grad(p, 0, tasks);
  ExpectNear(chunked, expected, 1e-10);
  for (const TrainOps<float>* ops : Tiers()) {
    SCOPED_TRACE(ops->tier);
    Arrays<float> actual;
    auto f = Params(c, in, actual);
    ops->wkv7(f.forward, 0, tasks);
    // One head at a time, the last first: tasks are independent.
    for (int64_t task = tasks - 1; task >= 0; --task) ops->wkv7_grad(f, task, task + 1);
    ExpectNear(actual, expected, 5e-5);
    if (ops->wkv7_bf16 == nullptr) continue;
    Arrays<float> rounded;
    auto g = Params(c, in, rounded);
    ops->wkv7_bf16(g.forward, 0, tasks);
    for (int64_t task = tasks - 1; task >= 0; --task) ops->wkv7_bf16_grad(g, task, task + 1);
    ExpectNear(rounded, expected, 1e-4);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int64_t T : {1, 15, 16, 17, 33, 100}) {
    for (Kind kind : {Kind::kRandom, Kind::kReset, Kind::kRepeated, Kind::kNoState}) {
      cases.push_back({2, T, 2, 32, kind});
    }
  }
  for (int64_t N : {16, 48, 64, 96, 128}) {
    cases.push_back({2, 50, 3, N, Kind::kRandom});
    cases.push_back({1, 64, 2, N, Kind::kNoState});
    cases.push_back({1, 33, 3, N, Kind::kReset});
    cases.push_back({1, 40, 1, N, Kind::kRepeated});
  }
  cases.push_back({1, 20, 2, 16, Kind::kResetEverywhere});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Shapes, Wkv7, testing::ValuesIn(Cases()));

// After a reset nothing of the past is left, wherever in a chunk it stands.
TEST(Wkv7Reset, EqualsAFreshStart) {
  for (const TrainOps<float>* ops : Tiers()) {
    for (int64_t cut : {1, 7, 16, 31}) {
      const Case c{1, 40, 1, 16, Kind::kRandom};
      Inputs in = MakeInputs(c);
      in.reset = std::make_unique<bool[]>(c.T);
      in.reset[cut] = true;
      Arrays<float> whole, rest;
      auto p = Params(c, in, whole);
      ops->wkv7(p.forward, 0, 1);
      Wkv7Forward<float> tail = p.forward;
      tail.T = c.T - cut;
      for (const float** x : {&tail.r, &tail.w_raw, &tail.k, &tail.v, &tail.a, &tail.b}) {
        *x += cut * c.N;
      }
      tail.state = nullptr, tail.reset = nullptr, tail.sa = nullptr, tail.chunk_states = nullptr;
      tail.y = rest.Out(tail.T * c.N), tail.final_state = rest.Out(c.N * c.N);
      ops->wkv7(tail, 0, 1);
      for (int64_t i = 0; i < tail.T * c.N; ++i) {
        EXPECT_NEAR(p.forward.y[cut * c.N + i], tail.y[i], 1e-4);
      }
    }
  }
}

}  // namespace
}  // namespace skein::kernels::train
