#pragma once
// Test doubles for the engine: a model whose state is a hash of the tokens it has consumed and
// whose logits are a function of that hash, so that a token fed twice, skipped or fed to the wrong
// slot changes everything after it; and a tokenizer with words, so that stop strings begin and end
// inside tokens.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "engine/base/check.h"
#include "engine/models/model.h"
#include "engine/tokenizer.h"

namespace skein::engine {

inline uint64_t MixBits(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

class FakeModel final : public Model {
 public:
  explicit FakeModel(int32_t V, int32_t max_logits = 64) : logits_(size_t(max_logits) * V) {
    config_.L = 1;
    config_.C = 8;
    config_.H = 2;
    config_.N = 4;
    config_.V = V;
  }

  // The token whose logit is raised far above the rest after `consumed` tokens; -1: none.
  std::function<int32_t(int64_t consumed)> script;
  // Called by the engine thread before each step.
  std::function<void(const StepBatch& batch)> before_step;
  // A row that has consumed it gets NaN logits.
  int32_t poison = -1;
  std::atomic<int64_t> tokens_fed{0};
  std::atomic<int64_t> steps{0};

  const ModelConfig& config() const override { return config_; }
  int64_t weight_bytes() const override { return 0; }

  const float* Step(const StepBatch& batch, float* states, kernels::Stream&) override {
    if (before_step) before_step(batch);
    ++steps;
    tokens_fed += static_cast<int64_t>(batch.tokens.size());
    size_t wanted = 0;
    for (size_t row = 0; row + 1 < batch.offsets.size(); ++row) {
      float* state = states + batch.slots[row] * config_.state_floats();
      for (int32_t t = batch.offsets[row]; t < batch.offsets[row + 1]; ++t) {
        Consume(state, batch.tokens[t]);
        if (wanted < batch.logits_of.size() && batch.logits_of[wanted] == t) {
          WriteLogits(state, logits_.data() + wanted++ * config_.V);
        }
      }
    }
    SKEIN_CHECK(wanted == batch.logits_of.size());
    return logits_.data();
  }

 private:
  // A state holds the hash in quarters, the count, whether it is poisoned, and the quarters again
  // all over, so that a partial copy shows.
  void Consume(float* state, int32_t token) const {
    const int64_t n = config_.state_floats();
    for (int64_t i = 6; i < n; ++i) SKEIN_CHECK(state[i] == state[i % 4]);
    const uint64_t hash = MixBits(Hash(state) ^ MixBits(static_cast<uint64_t>(token) + 1));
    for (int q = 0; q < 4; ++q) state[q] = static_cast<float>((hash >> (16 * q)) & 0xffff);
    state[4] += 1;
    if (token == poison) state[5] = 1;
    for (int64_t i = 6; i < n; ++i) state[i] = state[i % 4];
  }
  static uint64_t Hash(const float* state) {
    uint64_t hash = 0;
    for (int q = 0; q < 4; ++q) hash |= static_cast<uint64_t>(state[q]) << (16 * q);
    return hash;
  }
  void WriteLogits(const float* state, float* logits) const {
    const uint64_t hash = Hash(state);
    for (int32_t v = 0; v < config_.V; ++v) {
      const uint64_t bits = MixBits(hash + 0x51ull * static_cast<uint64_t>(v));
      logits[v] = static_cast<float>(bits >> 40) / float(1 << 24) * 8 - 4;
    }
    const int32_t forced = script ? script(static_cast<int64_t>(state[4])) : -1;
    if (forced >= 0) logits[forced] = 100;
    if (state[5] != 0) logits[0] = std::numeric_limits<float>::quiet_NaN();
  }

  ModelConfig config_;
  std::vector<float> logits_;
};

// Id 0, the 256 bytes as id byte + 1, then words; greedy longest match. Ids of empty words stand
// for nothing.
class WordTokenizer final : public Tokenizer {
 public:
  explicit WordTokenizer(const std::vector<std::string>& words) : kind_("words") {
    pieces_.emplace_back();
    for (int byte = 0; byte < 256; ++byte)
      pieces_.push_back(std::string(1, static_cast<char>(byte)));
    pieces_.insert(pieces_.end(), words.begin(), words.end());
  }
  using Tokenizer::Encode;
  const std::string& kind() const override { return kind_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(pieces_.size()); }
  void Encode(absl::string_view bytes, std::vector<int32_t>* tokens) const override {
    while (!bytes.empty()) {
      int32_t best = 1 + static_cast<uint8_t>(bytes[0]);
      for (int32_t id = 257; id < vocab_size(); ++id) {
        const std::string& piece = pieces_[id];
        if (piece.size() > pieces_[best].size() && bytes.substr(0, piece.size()) == piece)
          best = id;
      }
      tokens->push_back(best);
      bytes.remove_prefix(pieces_[best].size());
    }
  }
  absl::string_view Bytes(int32_t token) const override {
    return token >= 0 && token < vocab_size() ? absl::string_view(pieces_[token])
                                              : absl::string_view();
  }
  bool IsValid(int32_t token) const override { return token == 0 || !Bytes(token).empty(); }

 private:
  const std::string kind_;
  std::vector<std::string> pieces_;
};

}  // namespace skein::engine
