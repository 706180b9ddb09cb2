#include "trainer/models/rwkv7.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/layer_norm.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "kernels/torch_ops.h"
#include "trainer/random.h"

namespace skein::trainer {
namespace {

using at::Tensor;

int32_t Rank(int64_t given, double factor, int64_t C) {
  if (given > 0) return static_cast<int32_t>(given);
  return std::max(32, 32 * static_cast<int32_t>(
                               std::nearbyint(factor * std::sqrt(static_cast<double>(C)) / 32)));
}

// Residual add, norm, token shift and mixes; `seen` is what this norm's input was at the token
// before, and becomes what it is at the last one.
std::pair<Tensor, std::vector<Tensor>> NormMix(Tensor x, std::optional<Tensor> delta,
                                               const Tensor& ln_w, const Tensor& ln_b,
                                               const Tensor& mix, const ForwardOptions& o,
                                               Tensor* seen) {
  const bool shifted = seen != nullptr && seen->defined();
  if (shifted) {  // the token before goes in front, and its row of the result is dropped
    if (delta.has_value()) x = x + *delta;
    delta.reset();
    x = at::cat({*seen, x}, 1);
  }
  auto [sum, mixed] =
      kernels::AddNormMix(x, delta, ln_w, ln_b, mix, shifted ? std::nullopt : o.reset, kNormEps);
  if (seen != nullptr) *seen = sum.narrow(1, sum.size(1) - 1, 1).clone();
  if (!shifted) return {sum, mixed};
  const auto rest = [](const Tensor& t) { return t.narrow(1, 1, t.size(1) - 1); };
  for (Tensor& m : mixed) m = rest(m);
  return {rest(sum), mixed};
}

Tensor Dropout(const Tensor& x, const ForwardOptions& o, uint64_t place) {
  return o.dropout == 0 ? x : x * DropoutMask(x.sizes(), o, place);
}

}  // namespace

Tensor DropoutMask(at::IntArrayRef sizes, const ForwardOptions& o, uint64_t place) {
  const c10::AutoGradMode off(false);
  Tensor mask = at::empty(sizes);
  for (int64_t b = 0; b < sizes[0]; ++b) {
    const uint64_t sample = static_cast<uint64_t>(o.first_sample + b);
    at::Generator generator =
        at::detail::createCPUGenerator(Mix64(Mix64(o.dropout_seed, sample), place));
    mask.select(0, b).bernoulli_(1 - o.dropout, generator);
  }
  return mask.mul_(1 / (1 - o.dropout));
}

engine::ModelConfig Rwkv7::Sizes(const ModelOptions& options, int64_t V) {
  engine::ModelConfig s;
  s.L = static_cast<int32_t>(options.layers);
  s.C = static_cast<int32_t>(options.width);
  s.N = static_cast<int32_t>(options.head_size);
  s.H = s.C / s.N;
  s.V = static_cast<int32_t>(V);
  s.F = 4 * s.C;
  s.rank_w = Rank(options.rank_w, 2.5, s.C);
  s.rank_a = Rank(options.rank_a, 2.5, s.C);
  s.rank_v = s.L > 1 ? Rank(options.rank_v, 1.7, s.C) : 0;
  s.rank_g = Rank(options.rank_g, 5, s.C);
  return s;
}

Rwkv7::Rwkv7(const engine::ModelConfig& sizes, bool compute_bf16)
    : sizes_(sizes), compute_bf16_(compute_bf16) {
  const int64_t C = sizes_.C, V = sizes_.V;
  const auto vector = [&](const std::string& name) { return parameters_.Add({name}, {C}, {C}); };
  emb_ = parameters_.Add({"emb.weight"}, {V, C}, {V, C});
  ln0_w_ = vector("blocks.0.ln0.weight");
  ln0_b_ = vector("blocks.0.ln0.bias");
  for (int64_t l = 0; l < sizes_.L; ++l) blocks_.push_back(AddBlock(l));
  ln_out_w_ = vector("ln_out.weight");
  ln_out_b_ = vector("ln_out.bias");
  head_ = parameters_.Add({"head.weight"}, {V, C}, {V, C});
  parameters_.Allocate();
  sizes_.parameters = parameters_.count();
}

std::unique_ptr<Rwkv7> Rwkv7::Twin() const {
  auto twin = std::make_unique<Rwkv7>(*this);
  twin->parameters_ = parameters_.Twin();
  return twin;
}

Rwkv7::Block Rwkv7::AddBlock(int64_t l) {
  const int64_t C = sizes_.C, H = sizes_.H, N = sizes_.N, F = sizes_.F;
  const std::string block = absl::StrCat("blocks.", l, "."), att = block + "att.",
                    ffn = block + "ffn.";
  const auto vector = [&](const std::string& name) { return parameters_.Add({name}, {C}, {C}); };
  const auto row = [&](const std::string& name) { return parameters_.Add({name}, {1, 1, C}, {C}); };
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    return parameters_.Add({name}, {rows, columns}, {rows, columns});
  };
  Block b;
  b.ln1_w = vector(block + "ln1.weight");
  b.ln1_b = vector(block + "ln1.bias");
  b.time_mix = parameters_.Add(
      {att + "x_r", att + "x_w", att + "x_k", att + "x_v", att + "x_a", att + "x_g"}, {1, 1, C},
      {6, C});
  b.w0 = row(att + "w0");
  b.w1 = matrix(att + "w1", C, sizes_.rank_w);
  b.w2 = matrix(att + "w2", sizes_.rank_w, C);
  b.a0 = row(att + "a0");
  b.a1 = matrix(att + "a1", C, sizes_.rank_a);
  b.a2 = matrix(att + "a2", sizes_.rank_a, C);
  if (l > 0) {
    b.v0 = row(att + "v0");
    b.v1 = matrix(att + "v1", C, sizes_.rank_v);
    b.v2 = matrix(att + "v2", sizes_.rank_v, C);
  }
  b.g1 = matrix(att + "g1", C, sizes_.rank_g);
  b.g2 = matrix(att + "g2", sizes_.rank_g, C);
  b.k_k = row(att + "k_k");
  b.k_a = row(att + "k_a");
  b.r_k = matrix(att + "r_k", H, N);
  b.receptance = matrix(att + "receptance.weight", C, C);
  b.key = matrix(att + "key.weight", C, C);
  b.value = matrix(att + "value.weight", C, C);
  b.output = matrix(att + "output.weight", C, C);
  b.ln_x_w = vector(att + "ln_x.weight");
  b.ln_x_b = vector(att + "ln_x.bias");
  b.ln2_w = vector(block + "ln2.weight");
  b.ln2_b = vector(block + "ln2.bias");
  b.channel_mix = parameters_.Add({ffn + "x_k"}, {1, 1, C}, {1, C});
  b.ffn_key = matrix(ffn + "key.weight", F, C);
  b.ffn_value = matrix(ffn + "value.weight", C, F);
  return b;
}

Tensor Rwkv7::Linear(const Tensor& x, const Tensor& w) const {
  return kernels::Linear(x, w, compute_bf16_);
}

Tensor Rwkv7::LowRank(const Tensor& x, int w1, int w2, int bias, const char* activation) const {
  return kernels::LowRank(x, leaf(w1), leaf(w2),
                          bias >= 0 ? std::optional<Tensor>(leaf(bias)) : std::nullopt, activation,
                          compute_bf16_);
}

Tensor Rwkv7::TimeMix(const Block& b, const std::vector<Tensor>& x, Tensor* v_first,
                      const ForwardOptions& o, Tensor* wkv) const {
  const Tensor &xr = x[0], &xw = x[1], &xk = x[2], &xv = x[3], &xa = x[4], &xg = x[5];
  const Tensor r = Linear(xr, leaf(b.receptance));
  const Tensor w_raw = LowRank(xw, b.w1, b.w2, b.w0, "tanh");
  const Tensor k_raw = Linear(xk, leaf(b.key));
  const Tensor v_own = Linear(xv, leaf(b.value));
  const Tensor a_raw = LowRank(xa, b.a1, b.a2, b.a0, "none");
  const Tensor g = LowRank(xg, b.g1, b.g2, -1, "sigmoid");
  const bool first = b.v1 < 0;
  std::optional<Tensor> v_raw, v0;
  if (first) {
    *v_first = v_own;
  } else {
    v_raw = LowRank(xv, b.v1, b.v2, b.v0, "none");
    v0 = *v_first;
  }
  const auto [k, v, a, kk_gate] =
      kernels::Prepare(k_raw, v_own, a_raw, v_raw, v0, leaf(b.k_k), leaf(b.k_a), sizes_.H);
  std::optional<Tensor> state;
  if (wkv != nullptr && wkv->defined()) state = *wkv;
  const auto [y, final_state] = kernels::Wkv7(r, w_raw, k, v, a, kk_gate, state, o.reset, sizes_.H);
  if (wkv != nullptr) *wkv = final_state;
  return Linear(kernels::NormBonusGate(y, r, k, v, g, leaf(b.r_k), leaf(b.ln_x_w), leaf(b.ln_x_b),
                                       kGroupNormEps),
                leaf(b.output));
}

Tensor Rwkv7::ChannelMix(const Block& b, const Tensor& mixed) const {
  return Linear(kernels::ReluSquared(Linear(mixed, leaf(b.ffn_key))), leaf(b.ffn_value));
}

Tensor Rwkv7::Hidden(const Tensor& tokens, const ForwardOptions& o) const {
  const int64_t C = sizes_.C;
  if (o.state != nullptr) o.state->blocks.resize(blocks_.size());
  Tensor x =
      at::layer_norm(at::embedding(leaf(emb_), tokens), {C}, leaf(ln0_w_), leaf(ln0_b_), kNormEps);
  x = Dropout(x, o, 0);
  Tensor v_first;
  std::vector<Tensor> mixed;
  std::optional<Tensor> delta;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    const Block& b = blocks_[l];
    Rwkv7State::Block* s = o.state != nullptr ? &o.state->blocks[l] : nullptr;
    std::tie(x, mixed) = NormMix(x, delta, leaf(b.ln1_w), leaf(b.ln1_b), leaf(b.time_mix), o,
                                 s ? &s->att_x : nullptr);
    delta = Dropout(TimeMix(b, mixed, &v_first, o, s ? &s->wkv : nullptr), o, 2 * l + 1);
    std::tie(x, mixed) = NormMix(x, delta, leaf(b.ln2_w), leaf(b.ln2_b), leaf(b.channel_mix), o,
                                 s ? &s->ffn_x : nullptr);
    delta = Dropout(ChannelMix(b, mixed[0]), o, 2 * l + 2);
  }
  return at::layer_norm(x + *delta, {C}, leaf(ln_out_w_), leaf(ln_out_b_), kNormEps);
}

Tensor Rwkv7::Logits(const Tensor& hidden) const { return Linear(hidden, head()); }

void Rwkv7::Initialize(uint64_t seed) {
  float* flat = parameters_.master().mutable_data_ptr<float>();
  for (const Parameter& p : parameters_.list()) {
    float* out = flat + p.offset;
    for (const std::string& name : p.names) {
      const std::vector<float> value = InitialValue(name, p.file_shape, sizes_, seed);
      out = std::copy(value.begin(), value.end(), out);
    }
  }
}

}  // namespace skein::trainer
