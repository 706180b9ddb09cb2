#pragma once
// RWKV-7 in plain double loops, one token at a time, straight from the formulae: the oracle of the
// engine's model. It shares no code with the operators.

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "tests/engine/random_model.h"

namespace skein::engine {

class Rwkv7Reference {
 public:
  using Vec = std::vector<double>;

  explicit Rwkv7Reference(const RandomModel& model) : m_(model), s_(model.shape), H_(s_.C / s_.N) {
    att_prev_.assign(s_.L, Vec(s_.C, 0.0));
    ffn_prev_ = att_prev_;
    state_.assign(s_.L, Vec(int64_t{s_.C} * s_.N, 0.0));
  }

  // Logits after this token.
  Vec Step(int32_t token) {
    const auto& table = m_["emb.weight"];
    Vec x(table.begin() + int64_t{token} * s_.C, table.begin() + int64_t{token + 1} * s_.C);
    x = Norm(x, "blocks.0.ln0", 1, 1e-5);
    Vec v_first;
    for (int32_t i = 0; i < s_.L; ++i) {
      const std::string block = "blocks." + std::to_string(i) + ".";
      Add(&x, TimeMix(i, block + "att.", Norm(x, block + "ln1", 1, 1e-5), &v_first));
      Add(&x, ChannelMix(i, block + "ffn.", Norm(x, block + "ln2", 1, 1e-5)));
    }
    return Linear("head.weight", Norm(x, "ln_out", 1, 1e-5));
  }

 private:
  static void Add(Vec* x, const Vec& y) {
    for (size_t i = 0; i < x->size(); ++i) (*x)[i] += y[i];
  }
  static double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

  Vec Norm(const Vec& x, const std::string& name, int32_t groups, double eps) const {
    const auto &weight = m_[name + ".weight"], &bias = m_[name + ".bias"];
    const size_t n = x.size() / groups;
    Vec y(x.size());
    for (int32_t g = 0; g < groups; ++g) {
      double mean = 0, var = 0;
      for (size_t i = 0; i < n; ++i) mean += x[g * n + i] / n;
      for (size_t i = 0; i < n; ++i) var += (x[g * n + i] - mean) * (x[g * n + i] - mean) / n;
      for (size_t i = g * n; i < (g + 1) * n; ++i) {
        y[i] = (x[i] - mean) / std::sqrt(var + eps) * weight[i] + bias[i];
      }
    }
    return y;
  }
  Vec Linear(const std::string& name, const Vec& x) const {  // [out, in]
    const auto& w = m_[name];
    Vec y(w.size() / x.size(), 0.0);
    for (size_t o = 0; o < y.size(); ++o) {
      for (size_t k = 0; k < x.size(); ++k) y[o] += w[o * x.size() + k] * x[k];
    }
    return y;
  }
  Vec LinearIn(const std::string& name, const Vec& x) const {  // [in, out]
    const auto& w = m_[name];
    Vec y(w.size() / x.size(), 0.0);
    for (size_t k = 0; k < x.size(); ++k) {
      for (size_t o = 0; o < y.size(); ++o) y[o] += w[k * y.size() + o] * x[k];
    }
    return y;
  }
  Vec Mix(const std::string& name, const Vec& x, const Vec& prev) const {
    Vec y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] + (prev[i] - x[i]) * m_[name][i];
    return y;
  }

  Vec TimeMix(int32_t layer, const std::string& att, const Vec& x, Vec* v_first) {
    const Vec& prev = att_prev_[layer];
    const Vec xr = Mix(att + "x_r", x, prev), xw = Mix(att + "x_w", x, prev),
              xk = Mix(att + "x_k", x, prev), xv = Mix(att + "x_v", x, prev),
              xa = Mix(att + "x_a", x, prev), xg = Mix(att + "x_g", x, prev);
    att_prev_[layer] = x;
    const int32_t C = s_.C, N = s_.N;
    Vec r = Linear(att + "receptance.weight", xr), k = Linear(att + "key.weight", xk),
        v = Linear(att + "value.weight", xv);
    Vec tw = LinearIn(att + "w1", xw);
    for (double& z : tw) z = std::tanh(z);
    Vec w = LinearIn(att + "w2", tw), a = LinearIn(att + "a2", LinearIn(att + "a1", xa)),
        tg = LinearIn(att + "g1", xg);
    for (double& z : tg) z = Sigmoid(z);
    const Vec g = LinearIn(att + "g2", tg);
    Vec kk(C);
    for (int32_t c = 0; c < C; ++c) {
      w[c] = std::exp(-std::exp(-0.5) * Sigmoid(m_[att + "w0"][c] + w[c]));
      a[c] = Sigmoid(m_[att + "a0"][c] + a[c]);
      kk[c] = k[c] * m_[att + "k_k"][c];
    }
    for (int32_t h = 0; h < H_; ++h) {
      double norm = 0;
      for (int32_t n = 0; n < N; ++n) norm += kk[h * N + n] * kk[h * N + n];
      for (int32_t n = 0; n < N; ++n) kk[h * N + n] /= std::max(std::sqrt(norm), 1e-12);
    }
    for (int32_t c = 0; c < C; ++c) k[c] *= 1 + (a[c] - 1) * m_[att + "k_a"][c];
    if (layer == 0) {
      *v_first = v;
    } else {
      const Vec vr = LinearIn(att + "v2", LinearIn(att + "v1", xv));
      for (int32_t c = 0; c < C; ++c)
        v[c] += ((*v_first)[c] - v[c]) * Sigmoid(m_[att + "v0"][c] + vr[c]);
    }
    Vec y = Recurrence(layer, r, w, k, v, kk, a);
    y = Norm(y, att + "ln_x", H_, 64e-5);
    for (int32_t h = 0; h < H_; ++h) {
      double bonus = 0;
      for (int32_t n = h * N; n < (h + 1) * N; ++n) bonus += r[n] * k[n] * m_[att + "r_k"][n];
      for (int32_t n = h * N; n < (h + 1) * N; ++n) y[n] = (y[n] + bonus * v[n]) * g[n];
    }
    return Linear(att + "output.weight", y);
  }

  // S = S diag(w) - (S kk)(kk a)^T + v k^T; y = S r.
  Vec Recurrence(int32_t layer, const Vec& r, const Vec& w, const Vec& k, const Vec& v,
                 const Vec& kk, const Vec& a) {
    const int32_t N = s_.N;
    Vec y(s_.C, 0.0);
    for (int32_t h = 0; h < H_; ++h) {
      for (int32_t i = 0; i < N; ++i) {
        double* S = state_[layer].data() + (int64_t{h} * N + i) * N;
        double dot = 0;
        for (int32_t j = 0; j < N; ++j) dot += S[j] * kk[h * N + j];
        for (int32_t j = 0; j < N; ++j) {
          const int32_t c = h * N + j;
          S[j] = S[j] * w[c] - dot * kk[c] * a[c] + v[h * N + i] * k[c];
          y[h * N + i] += S[j] * r[c];
        }
      }
    }
    return y;
  }

  Vec ChannelMix(int32_t layer, const std::string& ffn, const Vec& x) {
    Vec h = Linear(ffn + "key.weight", Mix(ffn + "x_k", x, ffn_prev_[layer]));
    ffn_prev_[layer] = x;
    for (double& z : h) z = std::max(z, 0.0) * std::max(z, 0.0);
    return Linear(ffn + "value.weight", h);
  }

  const RandomModel& m_;
  const RandomShape s_;
  const int32_t H_;
  std::vector<Vec> att_prev_, ffn_prev_, state_;
};

}  // namespace skein::engine
