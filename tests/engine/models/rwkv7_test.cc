#include "engine/models/rwkv7.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "engine/models/model.h"
#include "tests/engine/models/rwkv7_reference.h"
#include "tests/engine/random_model.h"
#include "tests/temp_folder.h"

namespace skein::engine {
namespace {

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const char* tier : {"plain", "avx2", "avx512", "avx512bf16", "amx"}) {
    std::string error;
    if (kernels::NewCpuDevice({1, tier}, &error) != nullptr) tiers.push_back(tier);
  }
  return tiers;
}

// A loaded model with states for a few slots.
struct Loaded {
  Loaded(const RandomModel& random, const std::string& tier, DType weights, int threads = 2,
         bool chunked_wkv = false) {
    std::string error;
    device = kernels::NewCpuDevice({threads, tier}, &error);
    EXPECT_NE(device, nullptr) << error;
    const std::string path = TempFolder() + "/rwkv7_test.safetensors";
    EXPECT_TRUE(random.Write(path).ok());
    auto checkpoint = Checkpoint::Open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    ModelOptions options;
    options.weights = weights;
    options.chunked_wkv = chunked_wkv;
    options.max_tokens = 256;
    options.max_rows = 40;
    options.max_logits = 256;
    auto loaded = Model::Load(**checkpoint, *device, options);
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    model = std::move(*loaded);
    stream = device->NewStream();
    states = kernels::Buffer(*device, 40 * model->config().state_floats() * sizeof(float));
    std::memset(states.data(), 0, states.bytes());
  }

  // Runs rows (slot, tokens) in one step and returns the logits of every token.
  std::vector<std::vector<float>> Step(
      const std::vector<std::pair<int32_t, std::vector<int32_t>>>& rows) {
    std::vector<int32_t> tokens, offsets = {0}, slots, wanted;
    for (const auto& [slot, row] : rows) {
      tokens.insert(tokens.end(), row.begin(), row.end());
      offsets.push_back(tokens.size());
      slots.push_back(slot);
    }
    for (size_t t = 0; t < tokens.size(); ++t) wanted.push_back(t);
    const float* logits =
        model->Step({tokens, offsets, slots, wanted}, states.as<float>(), *stream);
    const int32_t V = model->config().V;
    std::vector<std::vector<float>> out;
    for (size_t t = 0; t < tokens.size(); ++t)
      out.emplace_back(logits + t * V, logits + (t + 1) * V);
    return out;
  }
  std::vector<float> StateOf(int32_t slot) const {
    const int64_t n = model->config().state_floats();
    return {states.as<float>() + slot * n, states.as<float>() + (slot + 1) * n};
  }

  std::unique_ptr<kernels::Device> device;
  std::unique_ptr<Model> model;
  std::unique_ptr<kernels::Stream> stream;
  kernels::Buffer states;
};

std::vector<int32_t> RandomTokens(int n, int32_t V, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& t : tokens) t = random() % V;
  return tokens;
}

double RelativeError(const std::vector<float>& got, const std::vector<double>& want) {
  double worst = 0, scale = 1e-30;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - want[i]));
    scale = std::max(scale, std::abs(want[i]));
  }
  return worst / scale;
}

const RandomShape kShapes[] = {
    {2, 64, 16, 257, 256, 32, 32, 32, 32, 1},
    {3, 96, 32, 130, 384, 24, 17, 9, 40, 2},  // widths that are not multiples of 128, odd ranks
    {2, 256, 128, 300, 1024, 32, 32, 32, 64, 3},
    {1, 192, 64, 99, 768, 8, 8, 8, 8, 4},
};

TEST(Rwkv7, MatchesThePlainReference) {
  for (const RandomShape& shape : kShapes) {
    const RandomModel random(shape);
    const auto tokens = RandomTokens(40, shape.V, 7);
    for (const std::string& tier : Tiers()) {
      Loaded f32(random, tier, DType::kF32), bf16(random, tier, DType::kBF16),
          int8(random, tier, DType::kI8), int8a8(random, tier, DType::kI8A8);
      const auto got = f32.Step({{3, tokens}}), rounded = bf16.Step({{3, tokens}}),
                 quantized = int8.Step({{3, tokens}}), both = int8a8.Step({{3, tokens}});
      Rwkv7Reference reference(random);
      for (size_t t = 0; t < tokens.size(); ++t) {
        const auto want = reference.Step(tokens[t]);
        EXPECT_LT(RelativeError(got[t], want), 2e-5) << tier << " C " << shape.C << " token " << t;
        EXPECT_LT(RelativeError(rounded[t], want), 0.08)
            << tier << " C " << shape.C << " token " << t;
        EXPECT_LT(RelativeError(quantized[t], want), 0.15)
            << tier << " C " << shape.C << " token " << t;
        EXPECT_LT(RelativeError(both[t], want), 0.2) << tier << " C " << shape.C << " token " << t;
      }
    }
  }
}

TEST(Rwkv7, AnyCutOfAPromptIsBitEqual) {
  for (const RandomShape& shape : kShapes) {
    const RandomModel random(shape);
    const auto tokens = RandomTokens(70, shape.V, 8);
    for (const std::string& tier : Tiers()) {
      for (const DType weights : {DType::kF32, DType::kBF16, DType::kI8, DType::kI8A8}) {
        Loaded m(random, tier, weights);
        const auto whole = m.Step({{0, tokens}});
        std::vector<std::vector<float>> single, chunks;
        for (int32_t token : tokens) single.push_back(m.Step({{1, {token}}})[0]);
        for (size_t at = 0, n = 1; at < tokens.size(); at += n, n = n * 2 + 1) {
          const size_t end = std::min(at + n, tokens.size());
          for (auto& l : m.Step({{2, {tokens.begin() + at, tokens.begin() + end}}}))
            chunks.push_back(l);
        }
        EXPECT_EQ(whole, single) << tier;
        EXPECT_EQ(whole, chunks) << tier;
        EXPECT_EQ(m.StateOf(0), m.StateOf(1));
        EXPECT_EQ(m.StateOf(0), m.StateOf(2));
      }
    }
  }
}

TEST(Rwkv7, PromptsByChunksMatchThePlainReference) {
  const RandomModel random(kShapes[3]);
  const auto tokens = RandomTokens(70, kShapes[3].V, 9);
  for (const std::string& tier : Tiers()) {
    Loaded exact(random, tier, DType::kF32), chunked(random, tier, DType::kF32, 2, true);
    const auto loop = exact.Step({{3, tokens}}),
               got = chunked.Step({{3, tokens}, {5, {tokens[0]}}});
    EXPECT_EQ(got.back(), loop[0]) << "a single token is not cut into chunks";
    EXPECT_EQ(std::vector(got.begin(), got.end() - 1) == loop,
              exact.device->ops().wkv7_chunked == nullptr)
        << tier;
    Rwkv7Reference reference(random);
    for (size_t t = 0; t < tokens.size(); ++t) {
      EXPECT_LT(RelativeError(got[t], reference.Step(tokens[t])), 1e-4) << tier << " token " << t;
    }
  }
}

TEST(Rwkv7, ARowAloneIsBitEqualToItselfAmong32Others) {
  const RandomShape shape = kShapes[1];
  const RandomModel random(shape);
  for (const std::string& tier : Tiers()) {
    for (const DType weights : {DType::kF32, DType::kBF16, DType::kI8, DType::kI8A8}) {
      Loaded alone(random, tier, weights, 1), among(random, tier, weights, 2);
      for (int step = 0; step < 6; ++step) {
        std::vector<std::pair<int32_t, std::vector<int32_t>>> rows;
        for (int32_t r = 0; r < 33; ++r) {
          rows.push_back({39 - r, RandomTokens(1 + (r + step) % 5, shape.V, 100 * step + r)});
        }
        const auto together = among.Step(rows);
        const auto by_itself = alone.Step({rows[17]});
        size_t first = 0;
        for (int r = 0; r < 17; ++r) first += rows[r].second.size();
        for (size_t t = 0; t < by_itself.size(); ++t)
          EXPECT_EQ(by_itself[t], together[first + t]) << tier;
      }
    }
  }
}

TEST(Rwkv7, RestoredStateContinuesBitEqual) {
  const RandomModel random(kShapes[0]);
  Loaded m(random, "", DType::kF32);
  const auto tokens = RandomTokens(50, 257, 9);
  const auto whole = m.Step({{0, tokens}});
  m.Step({{1, {tokens.begin(), tokens.begin() + 20}}});
  const auto saved = m.StateOf(1);
  m.Step({{1, RandomTokens(30, 257, 10)}});
  std::copy(saved.begin(), saved.end(),
            m.states.as<float>() + 5 * m.model->config().state_floats());
  const auto rest = m.Step({{5, {tokens.begin() + 20, tokens.end()}}});
  for (size_t t = 0; t < rest.size(); ++t) EXPECT_EQ(rest[t], whole[20 + t]);
}

}  // namespace
}  // namespace skein::engine
