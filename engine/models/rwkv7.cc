#include "engine/models/rwkv7.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/models/weight_loader.h"

namespace skein::engine {
namespace {

using kernels::Activation;
using kernels::Buffer;
using kernels::MatmulParams;
using kernels::PackedMatrix;
using kernels::StateView;

// x[j] = n + (prev - n) * mix[j], in this order in every array of mixes.
enum Mix { kR, kW, kK, kV, kA, kG, kMixes };

// y = act2(act1(x w1) w2 + bias): a low-rank branch.
struct LowRank {
  PackedMatrix w1;              // [D, C]
  PackedMatrix w2;              // [C, D]
  const float* bias = nullptr;  // [C]
};

struct Layer {
  const float *ln1_weight, *ln1_bias;    // [C]
  const float* mix;                      // [6, C] in order r w k v a g
  PackedMatrix receptance, key, value;   // [C, C]
  LowRank w, a, v, g;                    // v is absent in layer 0; g has no bias
  const float *k_k, *k_a;                // [C]
  const float* r_k;                      // [H, N]
  const float *ln_x_weight, *ln_x_bias;  // [C]
  PackedMatrix output;                   // [C, C]
  const float *ln2_weight, *ln2_bias;    // [C]
  const float* ffn_mix;                  // [1, C]
  PackedMatrix ffn_key;                  // [F, C]
  PackedMatrix ffn_value;                // [C, F]
};

// Activations of one step, fp32; T = max_tokens, n = max_logits.
struct Workspace {
  float *x, *delta, *normed;                                       // [T, C]
  float* mixed;                                                    // [6, T, C]
  float *r, *w, *k, *v, *a_raw, *v_raw, *g, *a, *b, *y, *v_first;  // [T, C]
  float *rank_w, *rank_a, *rank_v, *rank_g;                        // [T, D]
  float* ffn;                                                      // [T, F]
  float* final;                                                    // [n, C]
  float* logits;                                                   // [n, V]
  int32_t *tokens, *row_of;                                        // [T]
  int32_t *offsets, *slots;                                        // [R+1], [R]
  int32_t* logits_of;                                              // [n]
};

class Rwkv7 final : public Model {
 public:
  Rwkv7(const ModelConfig& config, kernels::Device& device, const ModelOptions& options)
      : config_(config),
        options_(options),
        device_(device),
        ops_(device.ops()),
        row_of_(options.max_tokens) {}

  absl::Status Load(const Checkpoint& checkpoint);

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return weight_bytes_; }
  const float* Step(const StepBatch& batch, float* states, kernels::Stream& stream) override;

 private:
  absl::Status AllocateWorkspace();
  static LowRank LoadLowRank(WeightLoader& load, const std::string& prefix, char letter, bool bias);
  static Layer LoadLayer(WeightLoader& load, int32_t i, int32_t C);
  kernels::Ragged Upload(const StepBatch& batch, kernels::Stream& stream);
  void TimeMix(int32_t i, const kernels::Ragged& batch, const float* delta, float* states,
               kernels::Stream& stream);
  void ChannelMix(int32_t i, const kernels::Ragged& batch, float* states, kernels::Stream& stream);
  StateView StateOf(int32_t i, float* states, int64_t offset) const {
    return {states + i * config_.layer_state_floats() + offset, config_.state_floats()};
  }

  const ModelConfig config_;
  const ModelOptions options_;
  kernels::Device& device_;
  const kernels::OpTable& ops_;

  const void* embedding_ = nullptr;  // [V, C]
  DType embedding_dtype_ = DType::kF32;
  const float *ln0_weight_ = nullptr, *ln0_bias_ = nullptr;  // [C]
  const float *ln_out_weight_ = nullptr, *ln_out_bias_ = nullptr;
  PackedMatrix head_;  // [V, C]
  std::vector<Layer> layers_;
  std::vector<Buffer> buffers_;
  int64_t weight_bytes_ = 0;

  Buffer workspace_;
  Workspace ws_{};
  std::vector<int32_t> row_of_;  // host staging
};

LowRank Rwkv7::LoadLowRank(WeightLoader& load, const std::string& prefix, char letter, bool bias) {
  LowRank branch;
  branch.w1 = load.MatrixTransposed(absl::StrCat(prefix, std::string(1, letter), "1"));
  branch.w2 = load.MatrixTransposed(absl::StrCat(prefix, std::string(1, letter), "2"));
  if (bias) branch.bias = load.Vector(absl::StrCat(prefix, std::string(1, letter), "0"));
  return branch;
}

Layer Rwkv7::LoadLayer(WeightLoader& load, int32_t i, int32_t C) {
  const std::string block = absl::StrCat("blocks.", i, ".");
  const std::string att = block + "att.", ffn = block + "ffn.";
  Layer l{};
  l.ln1_weight = load.Vector(block + "ln1.weight");
  l.ln1_bias = load.Vector(block + "ln1.bias");
  l.mix = load.Vectors(
      {att + "x_r", att + "x_w", att + "x_k", att + "x_v", att + "x_a", att + "x_g"}, C);
  l.receptance = load.Matrix(att + "receptance.weight");
  l.key = load.Matrix(att + "key.weight");
  l.value = load.Matrix(att + "value.weight");
  l.w = LoadLowRank(load, att, 'w', true);
  l.a = LoadLowRank(load, att, 'a', true);
  if (i > 0) l.v = LoadLowRank(load, att, 'v', true);
  l.g = LoadLowRank(load, att, 'g', false);
  l.k_k = load.Vector(att + "k_k");
  l.k_a = load.Vector(att + "k_a");
  l.r_k = load.Vector(att + "r_k");
  l.ln_x_weight = load.Vector(att + "ln_x.weight");
  l.ln_x_bias = load.Vector(att + "ln_x.bias");
  l.output = load.Matrix(att + "output.weight");
  l.ln2_weight = load.Vector(block + "ln2.weight");
  l.ln2_bias = load.Vector(block + "ln2.bias");
  l.ffn_mix = load.Vector(ffn + "x_k");
  l.ffn_key = load.Matrix(ffn + "key.weight");
  l.ffn_value = load.Matrix(ffn + "value.weight");
  return l;
}

absl::Status Rwkv7::Load(const Checkpoint& checkpoint) {
  WeightLoader load(checkpoint, device_, options_);
  embedding_ = load.Table("emb.weight");
  embedding_dtype_ = load.table_dtype();
  ln0_weight_ = load.Vector("blocks.0.ln0.weight");
  ln0_bias_ = load.Vector("blocks.0.ln0.bias");
  layers_.reserve(config_.L);
  for (int32_t i = 0; i < config_.L; ++i) layers_.push_back(LoadLayer(load, i, config_.C));
  ln_out_weight_ = load.Vector("ln_out.weight");
  ln_out_bias_ = load.Vector("ln_out.bias");
  head_ = load.Matrix("head.weight");
  SKEIN_RETURN_IF_ERROR(load.Fill());
  weight_bytes_ = load.bytes();
  buffers_ = load.TakeBuffers();
  return AllocateWorkspace();
}

absl::Status Rwkv7::AllocateWorkspace() {
  const int64_t T = options_.max_tokens, n = options_.max_logits, C = config_.C;
  int64_t bytes = 0;
  std::vector<std::pair<void*, int64_t>> pieces;  // address of the pointer, its offset
  const auto piece = [&](auto** pointer, int64_t elements) {
    pieces.emplace_back(pointer, bytes);
    bytes += (elements * 4 + 63) / 64 * 64;
  };
  for (float** p : {&ws_.x, &ws_.delta, &ws_.normed, &ws_.r, &ws_.w, &ws_.k, &ws_.v, &ws_.a_raw,
                    &ws_.v_raw, &ws_.g, &ws_.a, &ws_.b, &ws_.y, &ws_.v_first}) {
    piece(p, T * C);
  }
  piece(&ws_.mixed, kMixes * T * C);
  piece(&ws_.rank_w, T * config_.rank_w);
  piece(&ws_.rank_a, T * config_.rank_a);
  piece(&ws_.rank_v, T * config_.rank_v);
  piece(&ws_.rank_g, T * config_.rank_g);
  piece(&ws_.ffn, T * config_.F);
  piece(&ws_.final, n * C);
  piece(&ws_.logits, n * config_.V);
  piece(&ws_.tokens, T);
  piece(&ws_.row_of, T);
  piece(&ws_.offsets, options_.max_rows + 1);
  piece(&ws_.slots, options_.max_rows);
  piece(&ws_.logits_of, n);
  workspace_ = Buffer(device_, bytes);
  if (!workspace_) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no device memory for ", bytes, " bytes of activations; lower the tokens of a step"));
  }
  for (const auto& [pointer, offset] : pieces) {
    void* address = workspace_.as<char>() + offset;
    std::memcpy(pointer, &address, sizeof(address));
  }
  return absl::OkStatus();
}

kernels::Ragged Rwkv7::Upload(const StepBatch& batch, kernels::Stream& stream) {
  const auto R = static_cast<int32_t>(batch.slots.size());
  const auto T = static_cast<int32_t>(batch.tokens.size());
  SKEIN_CHECK(R >= 1 && R <= options_.max_rows && T >= R && T <= options_.max_tokens);
  SKEIN_CHECK(batch.offsets.size() == batch.slots.size() + 1 && batch.offsets[R] == T);
  SKEIN_CHECK(batch.logits_of.size() <= static_cast<size_t>(options_.max_logits));
  for (int32_t r = 0; r < R; ++r) {
    SKEIN_CHECK(batch.offsets[r] < batch.offsets[r + 1]);
    for (int32_t t = batch.offsets[r]; t < batch.offsets[r + 1]; ++t) row_of_[t] = r;
  }
  device_.CopyToDevice(ws_.tokens, batch.tokens.data(), T * sizeof(int32_t), stream);
  device_.CopyToDevice(ws_.row_of, row_of_.data(), T * sizeof(int32_t), stream);
  device_.CopyToDevice(ws_.offsets, batch.offsets.data(), (R + 1) * sizeof(int32_t), stream);
  device_.CopyToDevice(ws_.slots, batch.slots.data(), R * sizeof(int32_t), stream);
  device_.CopyToDevice(ws_.logits_of, batch.logits_of.data(), batch.logits_of.size_bytes(), stream);
  return {R, T, ws_.offsets, ws_.slots, ws_.row_of};
}

// y [T, O] = act(x [T, K] w^T + bias).
MatmulParams Product(const float* x, int32_t T, const PackedMatrix& w, float* y,
                     Activation activation = Activation::kNone, const float* bias = nullptr) {
  return {x, w.K, T, w, bias, activation, y, w.O};
}

void Rwkv7::TimeMix(int32_t i, const kernels::Ragged& batch, const float* delta, float* states,
                    kernels::Stream& stream) {
  const Layer& l = layers_[i];
  const int32_t T = batch.num_tokens, C = config_.C, H = config_.H, N = config_.N;
  const bool first = i == 0;
  const auto mixed = [&](Mix m) { return ws_.mixed + int64_t{m} * T * C; };

  ops_.add_norm_mix({batch, C, kMixes, ws_.x, delta, l.ln1_weight, l.ln1_bias, 1e-5f, l.mix,
                     StateOf(i, states, 0), ws_.normed, ws_.mixed},
                    stream);

  const MatmulParams in[] = {
      Product(mixed(kR), T, l.receptance, ws_.r),
      Product(mixed(kK), T, l.key, ws_.k),
      Product(mixed(kV), T, l.value, ws_.v),
      Product(mixed(kW), T, l.w.w1, ws_.rank_w, Activation::kTanh),
      Product(mixed(kA), T, l.a.w1, ws_.rank_a),
      Product(mixed(kG), T, l.g.w1, ws_.rank_g, Activation::kSigmoid),
      Product(mixed(kV), T, l.v.w1, ws_.rank_v),
  };
  ops_.matmul(in, first ? 6 : 7, stream);
  const MatmulParams out[] = {
      Product(ws_.rank_w, T, l.w.w2, ws_.w, Activation::kNone, l.w.bias),
      Product(ws_.rank_a, T, l.a.w2, ws_.a_raw, Activation::kNone, l.a.bias),
      Product(ws_.rank_g, T, l.g.w2, ws_.g),
      Product(ws_.rank_v, T, l.v.w2, ws_.v_raw, Activation::kNone, l.v.bias),
  };
  ops_.matmul(out, first ? 3 : 4, stream);

  ops_.prepare({T, H, N, ws_.w, ws_.k, ws_.v, ws_.a_raw, first ? nullptr : ws_.v_raw, ws_.v_first,
                l.k_k, l.k_a, ws_.a, ws_.b},
               stream);
  const auto wkv7 = options_.chunked_wkv && ops_.wkv7_chunked ? ops_.wkv7_chunked : ops_.wkv7;
  wkv7({batch, H, N, ws_.r, ws_.w, ws_.k, ws_.v, ws_.a, ws_.b, StateOf(i, states, C), ws_.y},
       stream);
  ops_.norm_bonus_gate({T, H, N, ws_.y, ws_.r, ws_.k, ws_.v, ws_.g, l.r_k, l.ln_x_weight,
                        l.ln_x_bias, 64e-5f, ws_.y},
                       stream);
  const MatmulParams output = Product(ws_.y, T, l.output, ws_.delta);
  ops_.matmul(&output, 1, stream);
}

void Rwkv7::ChannelMix(int32_t i, const kernels::Ragged& batch, float* states,
                       kernels::Stream& stream) {
  const Layer& l = layers_[i];
  const int32_t T = batch.num_tokens, C = config_.C;
  ops_.add_norm_mix({batch, C, 1, ws_.x, ws_.delta, l.ln2_weight, l.ln2_bias, 1e-5f, l.ffn_mix,
                     StateOf(i, states, C + int64_t{C} * config_.N), ws_.normed, ws_.mixed},
                    stream);
  const MatmulParams key = Product(ws_.mixed, T, l.ffn_key, ws_.ffn, Activation::kReluSquared);
  ops_.matmul(&key, 1, stream);
  const MatmulParams value = Product(ws_.ffn, T, l.ffn_value, ws_.delta);
  ops_.matmul(&value, 1, stream);
}

const float* Rwkv7::Step(const StepBatch& step, float* states, kernels::Stream& stream) {
  const kernels::Ragged batch = Upload(step, stream);
  ops_.embed({ws_.tokens, batch.num_tokens, embedding_, embedding_dtype_, ln0_weight_, ln0_bias_,
              1e-5f, config_.C, ws_.x},
             stream);
  const float* delta = nullptr;  // what the sub-layer before still has to add to x
  for (int32_t i = 0; i < config_.L; ++i) {
    TimeMix(i, batch, delta, states, stream);
    ChannelMix(i, batch, states, stream);
    delta = ws_.delta;
  }
  const auto n = static_cast<int32_t>(step.logits_of.size());
  if (n > 0) {
    ops_.final_norm({ws_.logits_of, n, config_.C, ws_.x, ws_.delta, ln_out_weight_, ln_out_bias_,
                     1e-5f, ws_.final},
                    stream);
    const MatmulParams head = Product(ws_.final, n, head_, ws_.logits);
    ops_.matmul(&head, 1, stream);
  }
  return ws_.logits;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Model>> LoadRwkv7(const Checkpoint& checkpoint,
                                                 const ModelConfig& config, kernels::Device& device,
                                                 const ModelOptions& options) {
  auto model = std::make_unique<Rwkv7>(config, device, options);
  SKEIN_RETURN_IF_ERROR(model->Load(checkpoint));
  return model;
}

}  // namespace skein::engine
