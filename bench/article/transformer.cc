#include "bench/article/transformer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "trainer/random.h"

namespace skein::article {
namespace {

using at::Tensor;

constexpr double kNormEps = 1e-5;
constexpr double kStd = 0.02;  // GPT-2's

int64_t BlockParameters(int64_t C, int64_t F) {
  return 4 * C * C + 4 * C + 2 * C * F + F + C + 4 * C;  // q k v o, feed-forward, two norms
}

// [B, T, 3C] -> q, k, v [B, H, T, N]
std::array<Tensor, 3> Heads(const Tensor& qkv, int64_t H) {
  const std::vector<Tensor> parts = qkv.chunk(3, -1);
  std::array<Tensor, 3> heads;
  for (int i = 0; i < 3; ++i)
    heads[i] = parts[i].view({qkv.size(0), qkv.size(1), H, -1}).transpose(1, 2);
  return heads;
}

}  // namespace

int64_t TransformerSizes::parameters() const {
  return 2 * V * C + context * C + L * BlockParameters(C, F) + 2 * C;
}

TransformerSizes TransformerSizes::Matching(int64_t wanted, int64_t L, int64_t C, int64_t H,
                                            int64_t V, int64_t context) {
  TransformerSizes s{L, C, H, V, 0, context};
  const int64_t per_layer = (wanted - 2 * V * C - 2 * C) / L - BlockParameters(C, 0);
  s.F = (per_layer + C) / (2 * C + 1) / 8 * 8;
  SKEIN_CHECK(s.F > 0);
  return s;
}

Transformer::Transformer(const TransformerSizes& sizes, bool compute_bf16, uint64_t seed)
    : sizes_(sizes), compute_bf16_(compute_bf16) {
  const int64_t C = sizes.C;
  emb_ = parameters_.Add({"emb.weight"}, {sizes.V, C}, {sizes.V, C});
  pos_ = parameters_.Add({"pos.weight"}, {sizes.context, C}, {sizes.context, C});
  for (int64_t l = 0; l < sizes.L; ++l) {
    const std::string block = absl::StrCat("blocks.", l, ".");
    blocks_.push_back({AddNorm(block + "ln1"), AddLinear(block + "qkv", 3 * C, C),
                       AddLinear(block + "out", C, C), AddNorm(block + "ln2"),
                       AddLinear(block + "up", sizes.F, C), AddLinear(block + "down", C, sizes.F)});
  }
  ln_out_ = AddNorm("ln_out");
  head_ = parameters_.Add({"head.weight"}, {sizes.V, C}, {sizes.V, C});
  parameters_.Allocate();
  trainer::Random random(seed);
  for (const trainer::Parameter& p : parameters_.list()) {
    const std::string& name = p.names[0];
    float* out = parameters_.master().mutable_data_ptr<float>() + p.offset;
    const bool norm = absl::StrContains(name, "ln");
    // What is added to the residual stream starts smaller, by GPT-2's rule.
    const bool residual = absl::StrContains(name, ".out.") || absl::StrContains(name, ".down.");
    const double std = residual ? kStd / std::sqrt(2.0 * static_cast<double>(sizes.L)) : kStd;
    for (int64_t i = 0; i < p.elements(); ++i) {
      if (p.shape.size() == 1) {
        out[i] = norm && absl::EndsWith(name, ".weight") ? 1.0f : 0.0f;
      } else {
        out[i] = static_cast<float>(std * random.Gaussian());
      }
    }
  }
}

Transformer::Linear Transformer::AddLinear(const std::string& name, int64_t out, int64_t in) {
  return {parameters_.Add({name + ".weight"}, {out, in}, {out, in}),
          parameters_.Add({name + ".bias"}, {out}, {out})};
}

Transformer::Linear Transformer::AddNorm(const std::string& name) {
  const int64_t C = sizes_.C;
  return {parameters_.Add({name + ".weight"}, {C}, {C}),
          parameters_.Add({name + ".bias"}, {C}, {C})};
}

Tensor Transformer::Apply(const Linear& linear, const Tensor& x) const {
  const Tensor &w = parameters_.leaf(linear.w), &b = parameters_.leaf(linear.b);
  if (!compute_bf16_) return at::linear(x, w, b);
  return at::linear(x.to(at::kBFloat16), w.to(at::kBFloat16), b.to(at::kBFloat16)).to(at::kFloat);
}

Tensor Transformer::Norm(const Linear& norm, const Tensor& x) const {
  return at::layer_norm(x, {sizes_.C}, parameters_.leaf(norm.w), parameters_.leaf(norm.b),
                        kNormEps);
}

Tensor Transformer::Attention(const Block& block, const Tensor& x) const {
  const auto [q, k, v] = Heads(Apply(block.qkv, x), sizes_.H);
  const Tensor y = at::scaled_dot_product_attention(q, k, v, {}, 0.0, /*is_causal=*/true);
  return Apply(block.out, y.transpose(1, 2).reshape(x.sizes()));
}

Tensor Transformer::Hidden(const Tensor& tokens) const {
  SKEIN_CHECK(tokens.size(1) <= sizes_.context);
  Tensor x = at::embedding(parameters_.leaf(emb_), tokens) +
             parameters_.leaf(pos_).narrow(0, 0, tokens.size(1));
  for (const Block& block : blocks_) {
    x = x + Attention(block, Norm(block.ln1, x));
    x = x + Apply(block.down, at::gelu(Apply(block.up, Norm(block.ln2, x)), "tanh"));
  }
  return Norm(ln_out_, x);
}

int64_t KvCache::Bytes(const TransformerSizes& s, int64_t B, int64_t capacity,
                       at::ScalarType type) {
  return 2 * s.L * B * s.C * capacity * static_cast<int64_t>(c10::elementSize(type));
}

KvCache::KvCache(const TransformerSizes& s, int64_t B, int64_t capacity, at::ScalarType type) {
  // One drawn piece, copied to every place: gigabytes of draws would take longer than the bench.
  const int64_t piece = std::min<int64_t>(capacity, 512);
  const Tensor drawn = at::empty({1, s.H, piece, s.C / s.H}).normal_().to(type);
  const auto filled = [&] {
    Tensor t = at::empty({B, s.H, capacity, s.C / s.H}, type);
    for (int64_t at = 0; at < capacity; at += piece) {
      const int64_t n = std::min(piece, capacity - at);
      t.narrow(2, at, n).copy_(drawn.narrow(2, 0, n).expand({B, s.H, n, s.C / s.H}));
    }
    return t;
  };
  for (int64_t l = 0; l < s.L; ++l) {
    keys.push_back(filled());
    values.push_back(filled());
  }
}

TransformerDecoder::TransformerDecoder(const TransformerSizes& s, at::ScalarType type)
    : sizes_(s), type_(type) {
  const int64_t C = s.C;
  at::Generator generator = at::detail::createCPUGenerator(1);
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return at::empty({rows, columns}).normal_(0, kStd, generator).to(type);
  };
  const auto linear = [&](int64_t out, int64_t in) {
    return Linear{matrix(out, in), at::zeros({out}, type)};
  };
  const Linear norm{at::ones({C}, type), at::zeros({C}, type)};
  emb_ = matrix(s.V, C);
  pos_ = matrix(s.context, C);
  head_ = matrix(s.V, C);
  ln_out_ = norm;
  for (int64_t l = 0; l < s.L; ++l)
    blocks_.push_back({norm, linear(3 * C, C), linear(C, C), norm, linear(s.F, C), linear(C, s.F)});
}

Tensor TransformerDecoder::Attention(const Block& block, const Tensor& x, int64_t position,
                                     Tensor& keys, Tensor& values) const {
  const auto [q, k, v] = Heads(at::linear(x, block.qkv.w, block.qkv.b), sizes_.H);
  keys.narrow(2, position, 1).copy_(k);
  values.narrow(2, position, 1).copy_(v);
  const Tensor y = at::scaled_dot_product_attention(q, keys.narrow(2, 0, position + 1),
                                                    values.narrow(2, 0, position + 1));
  return at::linear(y.transpose(1, 2).reshape(x.sizes()), block.out.w, block.out.b);
}

Tensor TransformerDecoder::Step(const Tensor& tokens, int64_t position, KvCache* cache) const {
  SKEIN_CHECK(position < sizes_.context);
  const auto norm = [&](const Linear& n, const Tensor& x) {
    return at::layer_norm(x, {sizes_.C}, n.w, n.b, kNormEps);
  };
  Tensor x = at::embedding(emb_, tokens.view({-1, 1})) + pos_.narrow(0, position, 1);  // [B, 1, C]
  for (size_t l = 0; l < blocks_.size(); ++l) {
    const Block& block = blocks_[l];
    x = x + Attention(block, norm(block.ln1, x), position, cache->keys[l], cache->values[l]);
    const Tensor up = at::linear(norm(block.ln2, x), block.up.w, block.up.b);
    x = x + at::linear(at::gelu(up, "tanh"), block.down.w, block.down.b);
  }
  return at::linear(norm(ln_out_, x), head_).view({tokens.size(0), sizes_.V});
}

}  // namespace skein::article
