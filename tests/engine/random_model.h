#pragma once
// Random RWKV-7 checkpoints for tests and benchmarks: values of the size that a trained model has.

#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/checkpoint.h"

namespace skein::engine {

struct RandomShape {
  int32_t L = 2, C = 64, N = 16, V = 257, F = 256;
  int32_t rank_w = 32, rank_a = 32, rank_v = 32, rank_g = 32;
  uint64_t seed = 1;
};

inline constexpr RandomShape kShape01B{12, 768, 64, 65536, 3072, 64, 64, 32, 128, 1};

// The tensors of a random model by name; fp32, row-major.
class RandomModel {
 public:
  explicit RandomModel(const RandomShape& s) : shape(s), random_(s.seed) {
    Add("emb.weight", {s.V, s.C}, 0, 0.5);
    for (int32_t i = 0; i < s.L; ++i) AddBlock("blocks." + std::to_string(i) + ".", i);
    AddNorm("ln_out", s.C);
    Add("head.weight", {s.V, s.C}, 0, 1.5 / std::sqrt(s.C));
  }

  const std::vector<float>& operator[](const std::string& name) const { return values.at(name); }

  absl::Status Write(const std::string& path,
                     const std::map<std::string, std::string>& meta = {}) const {
    return WriteSafetensors(path, ToWrite(), meta);
  }
  std::vector<TensorToWrite> ToWrite() const {
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, data] : values) {
      tensors.push_back({name, DType::kF32, shapes.at(name), data.data()});
    }
    return tensors;
  }

  const RandomShape shape;
  std::map<std::string, std::vector<float>> values;
  std::map<std::string, std::vector<int64_t>> shapes;

 private:
  void Add(const std::string& name, std::vector<int64_t> dims, double mean, double sigma) {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    std::vector<float> data(n);
    // A cheap approximately normal draw: large checkpoints are made in seconds.
    for (float& x : data) {
      const uint64_t u = random_();
      const double sum = double(u & 0xffff) + double((u >> 16) & 0xffff) +
                         double((u >> 32) & 0xffff) + double(u >> 48);
      x = static_cast<float>(mean + sigma * (sum / 65536.0 - 2.0) * 1.7320508);
    }
    shapes[name] = std::move(dims);
    values[name] = std::move(data);
  }
  void AddNorm(const std::string& name, int32_t width) {
    Add(name + ".weight", {width}, 1, 0.1);
    Add(name + ".bias", {width}, 0, 0.1);
  }
  void AddLowRank(const std::string& att, const std::string& letter, int32_t rank) {
    const int32_t C = shape.C;
    Add(att + letter + "1", {C, rank}, 0, 1.0 / std::sqrt(C));
    Add(att + letter + "2", {rank, C}, 0, 1.0 / std::sqrt(rank));
  }
  void AddBlock(const std::string& block, int32_t i) {
    const int32_t C = shape.C, F = shape.F;
    const std::string att = block + "att.", ffn = block + "ffn.";
    if (i == 0) AddNorm(block + "ln0", C);
    AddNorm(block + "ln1", C);
    AddNorm(block + "ln2", C);
    for (const char* x : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"})
      Add(att + x, {1, 1, C}, 0.5, 0.25);
    Add(att + "w0", {1, 1, C}, -2, 1.5);
    Add(att + "a0", {1, 1, C}, 0, 0.5);
    AddLowRank(att, "w", shape.rank_w);
    AddLowRank(att, "a", shape.rank_a);
    AddLowRank(att, "g", shape.rank_g);
    if (i > 0) {
      Add(att + "v0", {1, 1, C}, 0.7, 0.3);
      AddLowRank(att, "v", shape.rank_v);
    }
    Add(att + "k_k", {1, 1, C}, 0.7, 0.1);
    Add(att + "k_a", {1, 1, C}, 1.0, 0.1);
    Add(att + "r_k", {C / shape.N, shape.N}, 0, 0.2);
    for (const char* m : {"receptance", "key", "value", "output"}) {
      Add(att + m + ".weight", {C, C}, 0, 1.0 / std::sqrt(C));
    }
    AddNorm(att + "ln_x", C);
    Add(ffn + "x_k", {1, 1, C}, 0.5, 0.25);
    Add(ffn + "key.weight", {F, C}, 0, 1.0 / std::sqrt(C));
    Add(ffn + "value.weight", {C, F}, 0, 0.7 / std::sqrt(F));
  }

  std::mt19937_64 random_;
};

}  // namespace skein::engine
