#pragma once
// RWKV-7 for training: the layer loop on the operators of kernels/torch_ops.h, in the order of the
// engine's model.
//   x = LN(emb[token]; ln0);  per block x += TimeMix(LN(x; ln1)); x += ChannelMix(LN(x; ln2));
//   LN(x; ln_out)

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model_config.h"
#include "trainer/config.h"
#include "trainer/parameters.h"

namespace skein::trainer {

inline constexpr double kNormEps = 1e-5, kGroupNormEps = 64e-5;

// Where a forward pass goes on from: what each block saw last. Empty at the start of a sequence.
struct Rwkv7State {
  struct Block {
    at::Tensor att_x, ffn_x;  // [B, 1, C] the residual stream before ln1 and ln2 at the last token
    at::Tensor wkv;           // [B, H, N, N]
  };
  std::vector<Block> blocks;
};

struct ForwardOptions {
  std::optional<at::Tensor> reset;  // bool [B, T]: a document starts at this token
  Rwkv7State* state = nullptr;      // read and advanced (no gradient through it)
  double dropout = 0;
  uint64_t dropout_seed = 0;
  int64_t first_sample = 0;  // number of the first row: its masks are a function of it and the seed
};

// Zeros with probability o.dropout, the rest so that the mean stays 1; mask number `place` of each
// sample. sizes: [B, T, C].
at::Tensor DropoutMask(at::IntArrayRef sizes, const ForwardOptions& o, uint64_t place);

class Rwkv7 {
 public:
  // `sizes` has L, C, H, N, V and the ranks; F is 4 C unless set.
  Rwkv7(const engine::ModelConfig& sizes, bool compute_bf16);
  // From the config: V rows, ranks by the recipe where they are 0.
  static engine::ModelConfig Sizes(const ModelOptions& options, int64_t V);
  // The same weights with a gradient of its own.
  std::unique_ptr<Rwkv7> Twin() const;

  // tokens int64 [B, T] -> what the head reads, [B, T, C].
  at::Tensor Hidden(const at::Tensor& tokens, const ForwardOptions& options) const;
  // hidden [..., C] -> logits [..., V]
  at::Tensor Logits(const at::Tensor& hidden) const;

  void Initialize(uint64_t seed);
  Parameters& parameters() { return parameters_; }
  const Parameters& parameters() const { return parameters_; }
  const engine::ModelConfig& sizes() const { return sizes_; }
  const at::Tensor& head() const { return leaf(head_); }
  bool compute_bf16() const { return compute_bf16_; }

 private:
  friend class Rwkv7Step;

  struct Block {  // indices of leaves
    int ln1_w, ln1_b, time_mix, w0, w1, w2, a0, a1, a2, v0 = -1, v1 = -1, v2 = -1, g1, g2, k_k, k_a,
                                                        r_k;
    int receptance, key, value, output, ln_x_w, ln_x_b, ln2_w, ln2_b, channel_mix, ffn_key,
        ffn_value;
  };
  Block AddBlock(int64_t l);
  const at::Tensor& leaf(int index) const { return parameters_.leaf(index); }
  at::Tensor Linear(const at::Tensor& x, const at::Tensor& w) const;  // w [out, in]
  // Of the leaves w1 [in, D], w2 [D, out] and bias [out], which may be -1.
  at::Tensor LowRank(const at::Tensor& x, int w1, int w2, int bias, const char* activation) const;
  // `mixed`: for r, w, k, v, a, g.
  at::Tensor TimeMix(const Block& b, const std::vector<at::Tensor>& mixed, at::Tensor* v_first,
                     const ForwardOptions& options, at::Tensor* wkv) const;
  at::Tensor ChannelMix(const Block& b, const at::Tensor& mixed) const;

  engine::ModelConfig sizes_;
  const bool compute_bf16_;
  Parameters parameters_;
  int emb_, ln0_w_, ln0_b_, ln_out_w_, ln_out_b_, head_;
  std::vector<Block> blocks_;
};

// The value that a tensor of a fresh model starts with (row-major), by its name in the checkpoint.
std::vector<float> InitialValue(const std::string& name, const std::vector<int64_t>& shape,
                                const engine::ModelConfig& sizes, uint64_t seed);

}  // namespace skein::trainer
