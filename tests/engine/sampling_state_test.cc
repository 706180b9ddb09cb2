#include "engine/sampling_state.h"

#include <gmock/gmock.h>

#include <cmath>

namespace skein::engine {
namespace {

using kernels::SampleRow;
using kernels::TokenValue;

std::vector<std::pair<int32_t, float>> Values(const TokenValue* values, int32_t n) {
  std::vector<std::pair<int32_t, float>> pairs;
  for (int32_t i = 0; i < n; ++i) pairs.emplace_back(values[i].token, values[i].value);
  return pairs;
}
using Pairs = std::vector<std::pair<int32_t, float>>;

TEST(SamplingState, OptionsReachTheRow) {
  SamplingOptions sampling;
  sampling.temperature = 0.5f;
  sampling.top_k = 3;
  sampling.top_p = 0.7f;
  sampling.min_p = 0.1f;
  sampling.top_p_before_temperature = true;
  sampling.presence_penalty = 0.2f;
  sampling.frequency_penalty = 0.3f;
  sampling.repetition_penalty = 1.1f;
  const uint32_t mask[1] = {7};
  const SamplingState state(sampling, {}, true, 4, 42, mask);
  SampleRow row;
  state.Fill(&row);
  EXPECT_EQ(row.temperature, 0.5f);
  EXPECT_EQ(row.top_k, 3);
  EXPECT_EQ(row.top_p, 0.7f);
  EXPECT_EQ(row.min_p, 0.1f);
  EXPECT_TRUE(row.top_p_before_temperature);
  EXPECT_EQ(row.presence_penalty, 0.2f);
  EXPECT_EQ(row.frequency_penalty, 0.3f);
  EXPECT_EQ(row.repetition_penalty, 1.1f);
  EXPECT_EQ(row.num_logprobs, 4);
  EXPECT_EQ(row.seed, 42u);
  EXPECT_EQ(row.position, 0u);
  EXPECT_EQ(row.mask, mask);
}

TEST(SamplingState, CountsDecayAtEachToken) {
  SamplingOptions sampling;
  sampling.frequency_penalty = 1;
  sampling.penalty_decay = 0.5f;
  SamplingState state(sampling, {}, false, 0, 1, nullptr);
  SampleRow row;
  for (const int32_t token : {5, 6, 5}) state.Accept(token);
  state.Fill(&row);
  EXPECT_EQ(row.position, 3u);
  EXPECT_EQ(Values(row.counts, row.num_counts), (Pairs{{5, 1.25f}, {6, 0.5f}}));
}

TEST(SamplingState, NothingIsCountedWithoutPenalties) {
  SamplingState state({}, {}, false, 0, 1, nullptr);
  state.Accept(5);
  SampleRow row;
  state.Fill(&row);
  EXPECT_EQ(row.num_counts, 0);
  EXPECT_EQ(row.position, 1u);
}

TEST(SamplingState, BiasAndBansAreMerged) {
  SamplingOptions sampling;
  sampling.logit_bias = {{9, 1.0f}, {3, 2.0f}, {9, 0.5f}};
  sampling.banned_tokens = {3, 4, 4};
  const SamplingState state(sampling, {}, false, 0, 1, nullptr);
  SampleRow row;
  state.Fill(&row);
  const float banned = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(Values(row.bias, row.num_bias), (Pairs{{3, banned}, {4, banned}, {9, 1.5f}}));
}

TEST(SamplingState, StopsAreBannedBeforeMinTokens) {
  StoppingOptions stopping;
  stopping.min_tokens = 2;
  stopping.stop_tokens = {8};
  SamplingOptions sampling;
  sampling.logit_bias = {{8, 5.0f}};
  SamplingState state(sampling, stopping, false, 0, 1, nullptr);
  const float banned = -std::numeric_limits<float>::infinity();
  SampleRow row;
  for (int i = 0; i < 2; ++i) {
    state.Fill(&row);
    EXPECT_EQ(Values(row.bias, row.num_bias), (Pairs{{0, banned}, {8, banned}}));
    state.Accept(5);
  }
  state.Fill(&row);
  EXPECT_EQ(Values(row.bias, row.num_bias), (Pairs{{8, 5.0f}}));
}

TEST(SamplingState, ChecksNameTheField) {
  const auto message = [](const SamplingOptions& sampling, const StoppingOptions& stopping = {}) {
    return std::string(CheckSampling(sampling, stopping, 10, 10).message());
  };
  using ::testing::HasSubstr;
  EXPECT_EQ(message({}), "");
  SamplingOptions bad;
  bad.temperature = std::nanf("");
  EXPECT_THAT(message(bad), HasSubstr("temperature"));
  bad = {};
  bad.logit_bias = {{10, 1.0f}};
  EXPECT_THAT(message(bad), HasSubstr("logit_bias"));
  bad.logit_bias = {{1, std::numeric_limits<float>::infinity()}};
  EXPECT_THAT(message(bad), HasSubstr("logit_bias"));
  bad = {};
  bad.banned_tokens = {-1};
  EXPECT_THAT(message(bad), HasSubstr("banned_tokens"));
  bad.banned_tokens = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_THAT(message(bad), HasSubstr("every token is banned"));
  StoppingOptions stopping;
  stopping.min_tokens = 1;  // end-of-document is banned, too
  bad.banned_tokens.erase(bad.banned_tokens.begin());
  EXPECT_THAT(message(bad, stopping), HasSubstr("every token is banned"));
  stopping.ignore_eos = true;
  EXPECT_EQ(message(bad, stopping), "");
  stopping.stop_tokens = {10};
  EXPECT_THAT(message({}, stopping), HasSubstr("stop_tokens"));
}

}  // namespace
}  // namespace skein::engine
