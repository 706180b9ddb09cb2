// The initial values of RWKV-7 ("x070"), with rho = l / (L - 1) (0 for one layer), eta = 1 - l / L,
// d_i = i / C.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/match.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "trainer/models/rwkv7.h"
#include "trainer/random.h"

namespace skein::trainer {
namespace {

// Rows (or columns, when there are more rows) orthonormal, times gain: QR of a Gaussian with the
// sign of R's diagonal taken out, which makes it uniform over all such matrices.
std::vector<float> Orthogonal(int64_t rows, int64_t columns, double gain, Random random) {
  const int64_t tall = std::max(rows, columns), narrow = std::min(rows, columns);
  at::Tensor gaussian = at::empty({tall, narrow}, at::kFloat);
  float* p = gaussian.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tall * narrow; ++i) p[i] = static_cast<float>(random.Gaussian());
  auto [q, r] = at::linalg_qr(gaussian);
  q = q * r.diagonal().sign() * gain;
  if (rows < columns) q = q.t();
  q = q.contiguous();
  const float* data = q.const_data_ptr<float>();
  return std::vector<float>(data, data + rows * columns);
}

// What a vector of C channels is filled with: f(i).
template <typename F>
std::vector<float> Fill(int64_t n, F f) {
  std::vector<float> values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i)
    values[static_cast<size_t>(i)] = static_cast<float>(f(static_cast<double>(i)));
  return values;
}

struct Place {
  double rho = 0, eta = 1, layer = 0;
  double C = 0, N = 0, L = 0;

  double Lambda(double i) const { return C > 1 ? i / (C - 1) - 0.5 : 0; }
  double Z(double i) const {
    const double zeta = (std::fmod(i, N) - (N - 1) / 2) / ((N - 1) / 2);
    return zeta * std::fabs(zeta);
  }
};

Place PlaceOf(const std::string& name, const engine::ModelConfig& sizes) {
  Place p;
  p.C = sizes.C;
  p.N = sizes.N;
  p.L = sizes.L;
  if (absl::StartsWith(name, "blocks.")) p.layer = std::stoi(name.substr(7));
  p.rho = sizes.L > 1 ? p.layer / (p.L - 1) : 0;
  p.eta = 1 - p.layer / p.L;
  return p;
}

// Token-shift mixes: 1 - d^(e eta).
const std::map<std::string, double> kMixExponent = {{"att.x_r", 0.2}, {"att.x_w", 0.9},
                                                    {"att.x_k", 0.7}, {"att.x_v", 0.7},
                                                    {"att.x_a", 0.9}, {"att.x_g", 0.2}};

std::string Tail(const std::string& name) {  // without "blocks.N."
  if (!absl::StartsWith(name, "blocks.")) return name;
  return name.substr(name.find('.', 7) + 1);
}

std::vector<float> VectorValue(const std::string& tail, int64_t n, const Place& p) {
  if (auto mix = kMixExponent.find(tail); mix != kMixExponent.end()) {
    return Fill(n, [&](double i) { return 1 - std::pow(i / p.C, mix->second * p.eta); });
  }
  if (tail == "ffn.x_k")
    return Fill(n, [&](double i) { return 1 - std::pow(i / p.C, std::pow(p.eta, 4)); });
  if (tail == "att.w0") {
    return Fill(n, [&](double i) {
      return -6 + 6 * std::pow(i / (p.C - 1), 1 + std::pow(p.rho, 0.3)) + 0.5 + 2.5 * p.Z(i);
    });
  }
  if (tail == "att.a0")
    return Fill(n, [&](double i) { return -0.19 + 0.3 * p.Z(i) + 0.4 * p.Lambda(i); });
  if (tail == "att.v0") return Fill(n, [&](double i) { return 0.73 - 0.4 * p.Lambda(i); });
  if (tail == "att.k_k") return Fill(n, [&](double i) { return 0.71 - 0.1 * p.Lambda(i); });
  if (tail == "att.k_a") return Fill(n, [](double) { return 1.02; });
  if (tail == "att.r_k") return Fill(n, [](double) { return -0.04; });
  if (tail == "att.ln_x.weight") {
    return Fill(n, [&](double) { return std::pow((1 + p.layer) / p.L, 0.7); });
  }
  if (absl::EndsWith(tail, ".bias")) return Fill(n, [](double) { return 0; });
  SKEIN_CHECK(absl::StrContains(tail, "ln"));
  return Fill(n, [](double) { return 1; });
}

}  // namespace

std::vector<float> InitialValue(const std::string& name, const std::vector<int64_t>& shape,
                                const engine::ModelConfig& sizes, uint64_t seed) {
  const std::string tail = Tail(name);
  Random random(seed, base::Hash64(name.data(), name.size()));
  if (shape.size() != 2 || tail == "att.r_k") {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return VectorValue(tail, n, PlaceOf(name, sizes));
  }
  const int64_t rows = shape[0], columns = shape[1];
  const double tall = std::sqrt(static_cast<double>(rows) / static_cast<double>(columns));
  if (tail == "emb.weight") {
    return Fill(rows * columns, [&](double) { return (2 * random.Uniform() - 1) * 1e-4; });
  }
  if (tail == "head.weight")
    return Orthogonal(rows, columns, rows > columns ? 0.5 * tall : 0.5, random);
  if (tail == "att.w2" || tail == "att.a2" || tail == "att.v2" || tail == "att.g2") {
    return Orthogonal(rows, columns, rows > columns ? 0.1 * tall : 0.1, random);
  }
  if (tail == "att.key.weight") return Orthogonal(rows, columns, 0.1, random);
  if (tail == "att.receptance.weight" || tail == "att.value.weight" || tail == "ffn.key.weight") {
    return Orthogonal(rows, columns, 1, random);
  }
  // att.w1, a1, v1, g1, att.output.weight and ffn.value.weight: a fresh block adds nothing to the
  // residual stream.
  return std::vector<float>(static_cast<size_t>(rows * columns), 0.0f);
}

}  // namespace skein::trainer
