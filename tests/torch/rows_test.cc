// Every tier's row operators in float against the plain loops in double.

#include "kernels/train/plain.h"
#include "tests/torch/arrays.h"

namespace skein::kernels::train {
namespace {

const TrainOps<double>& Exact() { return PlainTrainOps<double>(); }

// Runs `call(ops, arrays)` in double with the plain loops, and in float with every tier; they must
// agree.
template <class Call>
void CompareTiers(double tolerance, const Call& call) {
  Arrays<double> expected;
  call(Exact(), expected);
  for (const TrainOps<float>* ops : Tiers()) {
    SCOPED_TRACE(ops->tier);
    Arrays<float> actual;
    call(*ops, actual);
    ExpectNear(actual, expected, tolerance);
  }
}

template <class Real>
void RunAddNormMix(const TrainOps<Real>& ops, Arrays<Real>& arrays, Random random, int64_t B,
                   int64_t T, int64_t C, int64_t M, bool delta, const bool* reset) {
  const int64_t R = B * T;
  AddNormMixForward<Real> p;
  p.B = B, p.T = T, p.C = C, p.M = M, p.reset = reset, p.eps = 1e-5;
  p.x = arrays.In(random.Normal(R * C));
  const Real* d = arrays.In(random.Normal(R * C));
  if (delta) p.delta = d;
  p.ln_weight = arrays.In(random.Normal(C)), p.ln_bias = arrays.In(random.Normal(C));
  p.mix = arrays.In(random.Uniform(M * C));
  p.sum = arrays.Out(R * C), p.mixed = arrays.Out(M * R * C);
  p.mean = arrays.Out(R), p.rstd = arrays.Out(R);
  const int64_t half = R / 2;  // two tasks, the second first
  ops.add_norm_mix(p, half, R);
  ops.add_norm_mix(p, 0, half);
  AddNormMixBackward<Real> q;
  q.B = B, q.T = T, q.C = C, q.M = M, q.reset = reset;
  q.sum = p.sum, q.mean = p.mean, q.rstd = p.rstd;
  q.ln_weight = p.ln_weight, q.ln_bias = p.ln_bias, q.mix = p.mix;
  const Real* d_sum = arrays.In(random.Normal(R * C));
  if (delta) q.d_sum = d_sum;
  std::vector<const Real*> d_mixed(M);
  for (const Real*& d : d_mixed) d = arrays.In(random.Normal(R * C));
  q.d_mixed = d_mixed.data();
  q.d_x = arrays.Out(R * C);
  ops.add_norm_mix_grad(q, half, R, arrays.Out((M + 2) * C));
  ops.add_norm_mix_grad(q, 0, half, arrays.Out((M + 2) * C));
}

TEST(Rows, AddNormMix) {
  for (int64_t C : {8, 13, 32, 100, 128}) {
    for (bool with : {false, true}) {
      const int64_t B = 2, T = 9, M = with ? 6 : 1;
      const auto reset = Random(C).Flags(B * T, 0.3);
      CompareTiers(3e-5, [&]<class Real>(const TrainOps<Real>& ops, Arrays<Real>& arrays) {
        RunAddNormMix(ops, arrays, Random(C), B, T, C, M, with, with ? reset.get() : nullptr);
      });
    }
  }
}

template <class Real>
void RunPrepare(const TrainOps<Real>& ops, Arrays<Real>& arrays, Random random, int64_t R,
                int64_t H, int64_t N, bool residual) {
  const int64_t C = H * N;
  PrepareBackward<Real> q;
  q.R = R, q.H = H, q.N = N;
  q.k = arrays.In(random.Normal(R * C)), q.v = arrays.In(random.Normal(R * C));
  q.a_raw = arrays.In(random.Normal(R * C, 3));
  const Real *v_raw = arrays.In(random.Normal(R * C)), *v_first = arrays.In(random.Normal(R * C));
  q.k_k = arrays.In(random.Normal(C)), q.k_a = arrays.In(random.Normal(C));
  q.d_k_out = arrays.In(random.Normal(R * C)), q.d_v_out = arrays.In(random.Normal(R * C));
  q.d_a_out = arrays.In(random.Normal(R * C)), q.d_b_out = arrays.In(random.Normal(R * C));
  q.d_k = arrays.Out(R * C), q.d_a_raw = arrays.Out(R * C);
  if (residual) {
    q.v_raw = v_raw, q.v_first = v_first;
    q.d_v = arrays.Out(R * C), q.d_v_raw = arrays.Out(R * C), q.d_v_first = arrays.Out(R * C);
  }
  PrepareForward<Real> p;
  p.R = R, p.H = H, p.N = N, p.k = q.k, p.v = q.v, p.a_raw = q.a_raw, p.k_k = q.k_k, p.k_a = q.k_a;
  p.v_raw = q.v_raw, p.v_first = q.v_first;
  p.k_out = arrays.Out(R * C), p.v_out = arrays.Out(R * C);
  p.a_out = arrays.Out(R * C), p.b_out = arrays.Out(R * C);
  ops.prepare(p, 0, R);
  ops.prepare_grad(q, 0, R, arrays.Out(2 * C));
}

TEST(Rows, Prepare) {
  for (int64_t N : {5, 16, 32, 64}) {
    for (bool residual : {false, true}) {
      CompareTiers(3e-5, [&]<class Real>(const TrainOps<Real>& ops, Arrays<Real>& arrays) {
        RunPrepare(ops, arrays, Random(N), 7, 3, N, residual);
      });
    }
  }
}

template <class Real>
void RunGate(const TrainOps<Real>& ops, Arrays<Real>& arrays, Random random, int64_t R, int64_t H,
             int64_t N) {
  const int64_t C = H * N;
  NormBonusGateBackward<Real> q;
  NormBonusGateForward<Real>& p = q.forward;
  p.R = R, p.H = H, p.N = N, p.eps = 64e-5;
  p.y = arrays.In(random.Normal(R * C)), p.r = arrays.In(random.Normal(R * C));
  p.k = arrays.In(random.Normal(R * C)), p.v = arrays.In(random.Normal(R * C));
  p.g = arrays.In(random.Normal(R * C)), p.r_k = arrays.In(random.Normal(C));
  p.ln_weight = arrays.In(random.Normal(C)), p.ln_bias = arrays.In(random.Normal(C));
  p.out = arrays.Out(R * C);
  q.d_out = arrays.In(random.Normal(R * C));
  q.d_y = arrays.Out(R * C), q.d_r = arrays.Out(R * C), q.d_k = arrays.Out(R * C);
  q.d_v = arrays.Out(R * C), q.d_g = arrays.Out(R * C);
  ops.norm_bonus_gate(p, 0, R);
  ops.norm_bonus_gate_grad(q, 0, R, arrays.Out(3 * C));
}

TEST(Rows, NormBonusGate) {
  for (int64_t N : {5, 16, 32, 64, 128}) {
    CompareTiers(3e-5, [&]<class Real>(const TrainOps<Real>& ops, Arrays<Real>& arrays) {
      RunGate(ops, arrays, Random(N), 6, 3, N);
    });
  }
}

template <class Real>
void RunCrossEntropy(const TrainOps<Real>& ops, Arrays<Real>& arrays, Random random, int64_t V,
                     bool gradient, std::vector<Doubles>* sums) {
  const int64_t rows = 5;
  const int64_t labels[rows] = {0, V - 1, -100, V / 2, 0};
  const Doubles logits = random.Normal(rows * V, 4);
  CrossEntropyArgs<Real> p;
  p.V = V, p.labels = labels, p.weights = arrays.In(random.Uniform(rows));
  p.inv_norm = 0.25, p.l2 = 0.01, p.gradient = gradient;
  p.logits = arrays.Out(rows * V);
  std::copy(logits.begin(), logits.end(), p.logits);
  Doubles ce(rows), squares(rows);
  p.ce = ce.data(), p.max_squared = squares.data();
  ops.cross_entropy(p, 0, rows);
  sums->push_back(ce);
  sums->push_back(squares);
}

TEST(Rows, CrossEntropy) {
  for (int64_t V : {1, 2, 7, 8, 257, 1003}) {
    for (bool gradient : {false, true}) {
      std::vector<Doubles> sums;
      CompareTiers(1e-5, [&]<class Real>(const TrainOps<Real>& ops, Arrays<Real>& arrays) {
        RunCrossEntropy(ops, arrays, Random(V), V, gradient, &sums);
      });
      for (size_t i = 2; i < sums.size(); ++i) {
        for (size_t row = 0; row < sums[i].size(); ++row) {
          EXPECT_NEAR(sums[i][row], sums[i % 2][row], 1e-5 * (1 + sums[i % 2][row]));
        }
      }
    }
  }
}

TEST(Rows, CrossEntropyShowsANaN) {
  for (const TrainOps<float>* ops : Tiers()) {
    for (int64_t place : {0, 9, 16}) {
      std::vector<float> logits(17, 1.0f);
      logits[place] = std::numeric_limits<float>::quiet_NaN();
      const int64_t label = 3;
      double ce = 0, squares = 0;
      CrossEntropyArgs<float> p;
      p.V = 17, p.labels = &label, p.inv_norm = 1, p.logits = logits.data();
      p.ce = &ce, p.max_squared = &squares;
      ops->cross_entropy(p, 0, 1);
      EXPECT_TRUE(std::isnan(ce)) << ops->tier << " " << place;
    }
  }
}

TEST(Rows, ReluSquared) {
  for (int64_t n : {1, 8, 37}) {
    CompareTiers(1e-6, [&]<class Real>(const TrainOps<Real>& ops, Arrays<Real>& arrays) {
      Random random(n);
      const Real *x = arrays.In(random.Normal(n)), *d = arrays.In(random.Normal(n));
      ops.relu_squared(x, arrays.Out(n), 0, n);
      ops.relu_squared_grad(x, d, arrays.Out(n), 0, n);
    });
  }
  for (const TrainOps<float>* ops : Tiers()) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    float out = 0;
    ops->relu_squared(&nan, &out, 0, 1);
    EXPECT_TRUE(std::isnan(out)) << ops->tier;
  }
}

TEST(Rows, AdamWOfEveryTierIsTheSame) {
  for (int64_t n : {1, 8, 29}) {
    std::vector<std::vector<float>> results;
    for (const TrainOps<float>* ops : Tiers()) {
      Random random(n);
      Arrays<float> arrays;
      AdamWArgs p;
      std::vector<float> all(3 * n);
      p.param = all.data(), p.m = all.data() + n, p.v = all.data() + 2 * n;
      const Doubles start = random.Normal(n), grad = random.Normal(n, 1e-3);
      std::copy(start.begin(), start.end(), p.param);
      p.grad = arrays.In(grad), p.beta1 = 0.9, p.beta2 = 0.99, p.eps = 1e-18;
      for (int step = 1; step <= 3; ++step) {
        p.step_size = 1e-2 / (1 - std::pow(0.9, step));
        p.inv_sqrt_bias2 = 1 / std::sqrt(1 - std::pow(0.99, step));
        p.decay = 1e-3, p.grad_scale = 0.5;
        ops->adamw(p, 0, n);
      }
      results.push_back(all);
    }
    for (const auto& result : results) {
      for (int64_t i = 0; i < 3 * n; ++i) EXPECT_NEAR(result[i], results[0][i], 2e-6);
    }
  }
}

TEST(Rows, SquaredNormBlock) {
  Random random(1);
  const Doubles values = random.Normal(1003);
  const std::vector<float> x(values.begin(), values.end());
  double expected = 0;
  for (double v : values) expected += v * v;
  EXPECT_NEAR(SquaredNormBlock(x.data(), 1003), expected, 1e-9);
}

TEST(Tiers, UnknownNamesAreRefused) {
  EXPECT_EQ(FindTrainOps("mmx"), nullptr);
  EXPECT_EQ(FindTrainOps(""), nullptr);
  EXPECT_STREQ(FindTrainOps("plain")->tier, "plain");
}

}  // namespace
}  // namespace skein::kernels::train
