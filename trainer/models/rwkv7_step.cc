#include "trainer/models/rwkv7_step.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "engine/base/check.h"
#include "kernels/torch/product.h"

namespace skein::trainer {
namespace {

using at::Tensor;
namespace operators = kernels::operators;

// A result of the mixes behind dropout: times the mask, in place.
void Drop(const Tensor& mask, Tensor& x) {
  if (mask.defined()) x.mul_(mask);
}

}  // namespace

// What the backward pass reads of one block, in the order in which it is computed.
struct Rwkv7Step::Block {
  operators::AddNormMix norm1, norm2;
  Tensor r, k, v;  // of x; k and v before they are prepared
  operators::LowRank w, a, g, v_gate;
  operators::Prepare prepare;
  operators::Wkv7 wkv;
  operators::NormBonusGate gate;
  Tensor time_mixed, ffn_k, ffn_k2, channel_mixed;
  Tensor time_mask, channel_mask;  // of dropout
};

// Gradients that are needed until the next block's take their place.
struct Rwkv7Step::Gradients {
  operators::AddNormMixGrad norm1, norm2, norm_in, norm_out;
  operators::LowRankGrad w, a, g, v_gate;
  operators::PrepareGrad prepare;
  operators::Wkv7Grad wkv;
  operators::NormBonusGateGrad gate;
  std::vector<Tensor> mixes = std::vector<Tensor>(6), ffn_mix = std::vector<Tensor>(1);
  Tensor gated, ffn_k, ffn_k2;
  Tensor v_first;  // of all blocks that read it
  Tensor mix;      // of a mix's result, where dropout makes it another than d_x
  Tensor x;        // of the residual stream
};

Rwkv7Step::Rwkv7Step(Rwkv7* model)
    : model_(model),
      bf16_(model->compute_bf16()),
      d_(std::make_unique<Gradients>()),
      no_mix_(at::zeros({1, model->sizes().C})) {
  for (const Parameter& p : model->parameters().list()) gradients_.push_back(p.leaf.grad());
  for (size_t l = 0; l < model->blocks_.size(); ++l) {
    const Rwkv7::Block& b = model->blocks_[l];
    Block& own = *blocks_.emplace_back(std::make_unique<Block>());
    SetNorm(b.ln1_w, b.ln1_b, leaf(b.time_mix), &own.norm1);
    SetNorm(b.ln2_w, b.ln2_b, leaf(b.channel_mix), &own.norm2);
    SetLowRank(b.w1, b.w2, b.w0, "tanh", &own.w);
    SetLowRank(b.a1, b.a2, b.a0, "none", &own.a);
    SetLowRank(b.g1, b.g2, -1, "sigmoid", &own.g);
    if (l > 0) SetLowRank(b.v1, b.v2, b.v0, "none", &own.v_gate);
    own.prepare.k_k = leaf(b.k_k), own.prepare.k_a = leaf(b.k_a);
    own.gate.r_k = leaf(b.r_k), own.gate.eps = kGroupNormEps;
    own.gate.ln_weight = leaf(b.ln_x_w), own.gate.ln_bias = leaf(b.ln_x_b);
    own.prepare.H = own.wkv.H = model->sizes().H;
    own.wkv.bf16 = bf16_;
  }
  SetNorm(model->ln0_w_, model->ln0_b_, no_mix_, &norm_in_);
  SetNorm(model->ln_out_w_, model->ln_out_b_, no_mix_, &norm_out_);
  head_.head = model->head(), head_.bf16 = bf16_;
}

Rwkv7Step::~Rwkv7Step() = default;

void Rwkv7Step::SetNorm(int weight, int bias, const Tensor& mix, operators::AddNormMix* op) const {
  op->ln_weight = leaf(weight), op->ln_bias = leaf(bias), op->mix = mix;
  op->eps = kNormEps;
}

void Rwkv7Step::SetLowRank(int w1, int w2, int bias, const char* activation,
                           operators::LowRank* op) const {
  op->w1 = leaf(w1), op->w2 = leaf(w2), op->activation = activation, op->bf16 = bf16_;
  if (bias >= 0) op->bias = leaf(bias);
}

void Rwkv7Step::Linear(const Tensor& x, int w, Tensor* y) const {
  const Tensor& weight = leaf(w);
  operators::Size(y, {x.size(0), x.size(1), weight.size(0)}, x.options());
  kernels::Multiply({x}, kernels::Transposed(weight), {}, bf16_, *y);
}

void Rwkv7Step::LinearGrad(const Tensor& x, int w, const Tensor& d_y, Tensor* d_x) const {
  operators::Size(d_x, x.sizes(), x.options());
  kernels::Multiply({d_y}, {leaf(w)}, {}, bf16_, *d_x);
  kernels::AddProduct(kernels::Transposed(d_y), {x}, bf16_, gradient(w));
}

void Rwkv7Step::AddWeights(const Tensor& weights, std::initializer_list<int> parameters) const {
  const float* from = weights.const_data_ptr<float>();
  for (const int i : parameters) {
    float* to = gradient(i).mutable_data_ptr<float>();
    const int64_t n = gradient(i).numel();
    for (int64_t j = 0; j < n; ++j) to[j] += from[j];
    from += n;
  }
}

Rwkv7Step::Loss Rwkv7Step::Run(const Batch& batch, const ForwardOptions& options, double l2wrap,
                               const LossDenominators& denominators,
                               const std::function<void(int)>& done) {
  SKEIN_CHECK(options.state == nullptr);
  const c10::AutoGradMode off(false);
  const at::AutoDispatchBelowADInplaceOrView below;
  Forward(batch, options);
  head_.x = norm_out_.mixed.view({-1, model_->sizes().C});
  head_.labels = batch.labels, head_.weights = batch.weights;
  head_.l2wrap = l2wrap, head_.norm = denominators.weights, head_.norm_rows = denominators.rows;
  head_.Run(gradient(model_->head_));
  if (std::isfinite(head_.loss)) Backward(batch, done);
  return {head_.loss, head_.ce_sum};
}

void Rwkv7Step::Forward(const Batch& batch, const ForwardOptions& options) {
  const int64_t B = batch.tokens.size(0), T = batch.tokens.size(1), C = model_->sizes().C;
  const auto mask = [&](uint64_t place) {
    if (options.dropout == 0) return Tensor();
    return DropoutMask({B, T, C}, options, place);
  };
  operators::Size(&embedded_, {B, T, C}, leaf(model_->emb_).options());
  const float* rows = leaf(model_->emb_).const_data_ptr<float>();
  const int64_t* tokens = batch.tokens.const_data_ptr<int64_t>();
  float* to = embedded_.mutable_data_ptr<float>();
  for (int64_t i = 0; i < B * T; ++i) std::copy_n(rows + tokens[i] * C, C, to + i * C);
  norm_in_.x = embedded_;
  norm_in_.Forward();
  mask_ = mask(0);
  Drop(mask_, norm_in_.mixes[0]);
  Tensor x = norm_in_.mixed.view({B, T, C}), delta;
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Block& b = *blocks_[l];
    b.norm1.reset = b.norm2.reset = b.wkv.reset = batch.reset;
    b.norm1.x = x, b.norm1.delta = delta;
    b.norm1.Forward();
    TimeMix(l);
    b.time_mask = mask(2 * l + 1);
    Drop(b.time_mask, b.time_mixed);
    b.norm2.x = b.norm1.sum, b.norm2.delta = b.time_mixed;
    b.norm2.Forward();
    ChannelMix(l);
    b.channel_mask = mask(2 * l + 2);
    Drop(b.channel_mask, b.channel_mixed);
    x = b.norm2.sum, delta = b.channel_mixed;
  }
  norm_out_.x = x, norm_out_.delta = delta;
  norm_out_.Forward();
}

void Rwkv7Step::TimeMix(size_t l) {
  const Rwkv7::Block& p = model_->blocks_[l];
  Block& b = *blocks_[l];
  const std::vector<Tensor>& x = b.norm1.mixes;
  const Tensor &xr = x[0], &xw = x[1], &xk = x[2], &xv = x[3], &xa = x[4], &xg = x[5];
  Linear(xr, p.receptance, &b.r);
  Linear(xk, p.key, &b.k);
  Linear(xv, p.value, &b.v);
  b.w.x = xw, b.a.x = xa, b.g.x = xg;
  for (operators::LowRank* op : {&b.w, &b.a, &b.g}) op->Forward();
  b.prepare.k = b.k, b.prepare.v = b.v, b.prepare.a_raw = b.a.y;
  if (l > 0) {
    b.v_gate.x = xv;
    b.v_gate.Forward();
    b.prepare.v_raw = b.v_gate.y, b.prepare.v_first = blocks_[0]->v;
  }
  b.prepare.Forward();
  b.wkv.r = b.r, b.wkv.w_raw = b.w.y, b.wkv.k = b.prepare.k_out, b.wkv.v = b.prepare.v_out;
  b.wkv.a = b.prepare.a, b.wkv.b = b.prepare.b;
  b.wkv.Forward(true);
  b.gate.y = b.wkv.y, b.gate.r = b.r, b.gate.k = b.prepare.k_out, b.gate.v = b.prepare.v_out;
  b.gate.g = b.g.y;
  b.gate.Forward();
  Linear(b.gate.out, p.output, &b.time_mixed);
}

void Rwkv7Step::ChannelMix(size_t l) {
  const Rwkv7::Block& p = model_->blocks_[l];
  Block& b = *blocks_[l];
  Linear(b.norm2.mixes[0], p.ffn_key, &b.ffn_k);
  operators::ReluSquared(b.ffn_k, &b.ffn_k2);
  Linear(b.ffn_k2, p.ffn_value, &b.channel_mixed);
}

// The gradient of a mix's result, by that of what dropout left of it.
const Tensor& Rwkv7Step::MixGrad(const Tensor& mask) {
  if (!mask.defined()) return d_->x;
  d_->mix = d_->x * mask;
  return d_->mix;
}

void Rwkv7Step::NormGrad(const operators::AddNormMix& op, const Tensor& d_sum,
                         at::TensorList d_mixes, std::initializer_list<int> parameters,
                         operators::AddNormMixGrad* grad) {
  grad->Backward(op, d_sum, d_mixes);
  AddWeights(grad->weights, parameters);
  d_->x = grad->d_x;
}

void Rwkv7Step::Backward(const Batch& batch, const std::function<void(int)>& done) {
  const Rwkv7& m = *model_;
  done(m.head_);
  const Tensor none, d_hidden = head_.d_x.view(norm_out_.sum.sizes());
  // Behind a norm without a mix come the gradients of its weights: the mix's own is left out.
  const auto plain = [&](const operators::AddNormMix& norm, const Tensor& d, int weight, int bias,
                         operators::AddNormMixGrad* grad) {
    grad->Backward(norm, none, d);
    AddWeights(grad->weights.narrow(0, 1, 2), {weight, bias});
    d_->x = grad->d_x;
    done(bias);
    done(weight);
  };
  plain(norm_out_, d_hidden, m.ln_out_w_, m.ln_out_b_, &d_->norm_out);
  for (size_t l = blocks_.size(); l-- > 0;) {
    const Rwkv7::Block& p = m.blocks_[l];
    ChannelMixGrad(l);
    NormGrad(blocks_[l]->norm2, d_->x, d_->ffn_mix, {p.channel_mix, p.ln2_w, p.ln2_b}, &d_->norm2);
    TimeMixGrad(l);
    NormGrad(blocks_[l]->norm1, d_->x, d_->mixes, {p.time_mix, p.ln1_w, p.ln1_b}, &d_->norm1);
    for (int i = p.ffn_value; i >= p.ln1_w; --i) done(i);
  }
  plain(norm_in_, MixGrad(mask_), m.ln0_w_, m.ln0_b_, &d_->norm_in);
  const int64_t C = m.sizes().C;
  const float* from = d_->x.const_data_ptr<float>();
  const int64_t* tokens = batch.tokens.const_data_ptr<int64_t>();
  float* to = gradient(m.emb_).mutable_data_ptr<float>();
  for (int64_t i = 0; i < batch.tokens.numel(); ++i) {
    float* row = to + tokens[i] * C;
    for (int64_t c = 0; c < C; ++c) row[c] += from[i * C + c];
  }
  done(m.emb_);
}

void Rwkv7Step::ChannelMixGrad(size_t l) {
  const Rwkv7::Block& p = model_->blocks_[l];
  const Block& b = *blocks_[l];
  LinearGrad(b.ffn_k2, p.ffn_value, MixGrad(b.channel_mask), &d_->ffn_k2);
  operators::ReluSquaredGrad(b.ffn_k, d_->ffn_k2, &d_->ffn_k);
  LinearGrad(b.norm2.mixes[0], p.ffn_key, d_->ffn_k, &d_->ffn_mix[0]);
}

void Rwkv7Step::TimeMixGrad(size_t l) {
  const Rwkv7::Block& p = model_->blocks_[l];
  const Block& b = *blocks_[l];
  Gradients& d = *d_;
  LinearGrad(b.gate.out, p.output, MixGrad(b.time_mask), &d.gated);
  d.gate.Backward(b.gate, d.gated);
  AddWeights(d.gate.weights, {p.r_k, p.ln_x_w, p.ln_x_b});
  d.wkv.Backward(b.wkv, d.gate.d_y, {});
  operators::Add(d.gate.d_r, d.wkv.d_r);
  operators::Add(d.gate.d_k, d.wkv.d_k);
  operators::Add(d.gate.d_v, d.wkv.d_v);
  d.prepare.Backward(b.prepare, d.wkv.d_k, d.wkv.d_v, d.wkv.d_a, d.wkv.d_b);
  AddWeights(d.prepare.weights, {p.k_k, p.k_a});
  ValueFirstGrad(l);

  std::vector<Tensor>& x = d.mixes;
  Tensor &xr = x[0], &xw = x[1], &xk = x[2], &xv = x[3], &xa = x[4], &xg = x[5];
  LinearGrad(b.norm1.mixes[0], p.receptance, d.wkv.d_r, &xr);
  LinearGrad(b.norm1.mixes[2], p.key, d.prepare.d_k, &xk);
  LinearGrad(b.norm1.mixes[3], p.value, l > 0 ? d.prepare.d_v : d.wkv.d_v, &xv);
  LowRankGrad(b.w, d.wkv.d_w_raw, {p.w1, p.w2, p.w0}, false, &d.w, &xw);
  LowRankGrad(b.a, d.prepare.d_a_raw, {p.a1, p.a2, p.a0}, false, &d.a, &xa);
  LowRankGrad(b.g, d.gate.d_g, {p.g1, p.g2, -1}, false, &d.g, &xg);
  if (l > 0) LowRankGrad(b.v_gate, d.prepare.d_v_raw, {p.v1, p.v2, p.v0}, true, &d.v_gate, &xv);
}

// All blocks but the first read the first one's v.
void Rwkv7Step::ValueFirstGrad(size_t l) {
  Gradients& d = *d_;
  if (l == 0) {
    if (blocks_.size() > 1) operators::Add(d.v_first, d.wkv.d_v);
    return;
  }
  if (l + 1 == blocks_.size()) {
    operators::Size(&d.v_first, d.prepare.d_v_first.sizes(), d.prepare.d_v_first.options());
    std::swap(d.v_first, d.prepare.d_v_first);
  } else {
    operators::Add(d.prepare.d_v_first, d.v_first);
  }
}

void Rwkv7Step::LowRankGrad(const operators::LowRank& op, const Tensor& d_y,
                            const std::array<int, 3>& weights, bool add,
                            operators::LowRankGrad* grad, Tensor* d_x) const {
  operators::Size(d_x, op.x.sizes(), op.x.options());
  const auto [w1, w2, bias] = weights;
  grad->Backward(op, d_y, *d_x, add, gradient(w1), gradient(w2),
                 bias >= 0 ? gradient(bias) : Tensor());
}

}  // namespace skein::trainer
