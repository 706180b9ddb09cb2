#pragma once
// The transformer beside Skein: GPT-2's block (pre-norm, learned positions, biases, GELU), written
// with LibTorch's own operators: fused attention, oneDNN or MKL products, one product for q, k, v.
// Training on the trainer's parameter buffer, so that both models have one optimiser; decoding with
// a key-value cache in the type that is asked for.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/parameters.h"

namespace skein::article {

struct TransformerSizes {
  int64_t L = 0, C = 0, H = 0, V = 0;
  int64_t F = 0;        // width of the feed-forward layer
  int64_t context = 0;  // rows of the position embedding
  int64_t parameters() const;
  // The same width, depth and vocabulary, and F so that there are as many parameters as `wanted`,
  // but for the position embedding, which grows with the context only.
  static TransformerSizes Matching(int64_t wanted, int64_t L, int64_t C, int64_t H, int64_t V,
                                   int64_t context);
};

// Trains in fp32, with products in bf16 where asked: what skein-train does.
class Transformer {
 public:
  Transformer(const TransformerSizes& sizes, bool compute_bf16, uint64_t seed);
  // tokens int64 [B, T], T <= context -> what the head reads, [B, T, C].
  at::Tensor Hidden(const at::Tensor& tokens) const;
  const at::Tensor& head() const { return parameters_.leaf(head_); }
  trainer::Parameters& parameters() { return parameters_; }
  bool compute_bf16() const { return compute_bf16_; }

 private:
  struct Linear {
    int w, b;  // [out, in], [out]
  };
  struct Block {
    Linear ln1, qkv, out, ln2, up, down;
  };
  Linear AddLinear(const std::string& name, int64_t out, int64_t in);
  Linear AddNorm(const std::string& name);
  at::Tensor Apply(const Linear& linear, const at::Tensor& x) const;
  at::Tensor Norm(const Linear& norm, const at::Tensor& x) const;
  at::Tensor Attention(const Block& block, const at::Tensor& x) const;

  const TransformerSizes sizes_;
  const bool compute_bf16_;
  trainer::Parameters parameters_;
  int emb_, pos_, head_;
  std::vector<Block> blocks_;
  Linear ln_out_;
};

// Keys and values of B conversations, [B, H, capacity, N] for each layer.
class KvCache {
 public:
  // Filled with random values.
  KvCache(const TransformerSizes& sizes, int64_t B, int64_t capacity, at::ScalarType type);
  static int64_t Bytes(const TransformerSizes& sizes, int64_t B, int64_t capacity,
                       at::ScalarType type);
  std::vector<at::Tensor> keys, values;
};

// Inference alone: random weights in one type.
class TransformerDecoder {
 public:
  TransformerDecoder(const TransformerSizes& sizes, at::ScalarType type);
  const TransformerSizes& sizes() const { return sizes_; }
  at::ScalarType type() const { return type_; }
  // tokens int64 [B], each at `position` of its conversation: writes their keys and values into the
  // cache and attends to all up to there. -> logits [B, V]
  at::Tensor Step(const at::Tensor& tokens, int64_t position, KvCache* cache) const;

 private:
  struct Linear {
    at::Tensor w, b;
  };
  struct Block {
    Linear ln1, qkv, out, ln2, up, down;
  };
  at::Tensor Attention(const Block& block, const at::Tensor& x, int64_t position, at::Tensor& keys,
                       at::Tensor& values) const;

  const TransformerSizes sizes_;
  const at::ScalarType type_;
  at::Tensor emb_, pos_, head_;
  std::vector<Block> blocks_;
  Linear ln_out_;
};

}  // namespace skein::article
