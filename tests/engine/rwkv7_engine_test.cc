// The engine over a random RWKV-7: the same exactness as over the fake model, bit for bit.

#include <gmock/gmock.h>

#include "tests/engine/rwkv7_harness.h"

namespace skein::engine {
namespace {

// What is compared: ids and the exact bits of their log-probabilities.
using Output = std::vector<std::pair<int32_t, float>>;
Output OutputOf(const CollectingSink& sink) {
  Output output;
  for (const TokenEvent& event : sink.events) output.emplace_back(event.token, event.logprob);
  return output;
}
std::vector<int32_t> Prompt(int n, int seed) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(1 + (i * 37 + seed * 101) % 256);
  return prompt;
}

class Rwkv7EngineTest : public ::testing::TestWithParam<std::tuple<std::string, DType>> {
 protected:
  Rwkv7EngineTest() : h_(std::get<0>(GetParam()), std::get<1>(GetParam())) {}
  GenerateRequest Sampled(std::vector<int32_t> input, uint64_t seed,
                          std::string conversation = "") {
    GenerateRequest request = h_.Request(std::move(input), std::move(conversation));
    request.sampling.temperature = 1;
    request.sampling.seed = seed;
    request.want_logprobs = true;
    request.stopping.max_tokens = 24;
    return request;
  }
  RwkvHarness h_;
};

TEST_P(Rwkv7EngineTest, ARowAmongManyEqualsTheRowAlone) {
  h_.Start();
  const int rows = std::get<0>(GetParam()) == "plain" ? 6 : 32;  // plain loops are slow
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < rows; ++i) sinks.push_back(h_.Submit(Sampled(Prompt(3 + 5 * i, i), i)));
  for (const auto& sink : sinks) sink->Wait();
  for (int i = 0; i < rows; ++i) {
    ASSERT_EQ(sinks[i]->events.size(), 24u) << sinks[i]->error;
    EXPECT_EQ(OutputOf(*sinks[i]), OutputOf(*h_.Run(Sampled(Prompt(3 + 5 * i, i), i)))) << i;
  }
}

TEST_P(Rwkv7EngineTest, TurnsEqualOneRun) {
  h_.store_options.history = 1;
  h_.Start();
  std::vector<int32_t> all;
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<int32_t> input = Prompt(7 + 20 * turn, turn);
    const auto sink = h_.Run(Sampled(input, turn, "c"));
    all = Join(all, input);
    EXPECT_EQ(OutputOf(*sink), OutputOf(*h_.Run(Sampled(all, turn)))) << turn;
    all = Join(all, sink->tokens());
  }
  EXPECT_EQ(h_.Tokens("c"), all);
  GenerateRequest rebuilt = Sampled({}, 9, "c");  // version 2 has no state any more
  rebuilt.base_version = 2;
  const auto sink = h_.Run(rebuilt);
  EXPECT_EQ(sink->started->restored_from, "tokens");
  EXPECT_EQ(OutputOf(*sink), OutputOf(*h_.Run(Sampled(h_.Tokens("c", 2), 9))));
}

TEST_P(Rwkv7EngineTest, ChunksDoNotMatter) {
  Output whole;
  for (const int32_t chunk : {128, 1, 5, 16}) {
    h_.options.max_prefill_chunk = chunk;
    h_.Start();
    const Output output = OutputOf(*h_.Run(Sampled(Prompt(100, 3), 3)));
    if (whole.empty()) whole = output;
    EXPECT_EQ(output, whole) << chunk;
  }
}

TEST_P(Rwkv7EngineTest, StopStringsLeaveNoTrace) {
  h_.Start();
  const auto free = h_.Run(Sampled(Prompt(20, 1), 5));
  const std::vector<int32_t> tokens = free->tokens();
  // Stops at the bytes of tokens 10..13; the first two are also held back at each partial match
  // before.
  GenerateRequest request = Sampled(Prompt(20, 1), 5, "c");
  request.stopping.stop_strings = {h_.engine->tokenizer().Decode(
      std::vector<int32_t>(tokens.begin() + 10, tokens.begin() + 14))};
  const auto sink = h_.Run(request);
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->tokens(), std::vector<int32_t>(tokens.begin(), tokens.begin() + 10));
  const auto next = h_.Run(Sampled(Prompt(9, 2), 6, "c"));
  EXPECT_EQ(OutputOf(*next),
            OutputOf(*h_.Run(Sampled(Join(Join(Prompt(20, 1), sink->tokens()), Prompt(9, 2)), 6))));
}

TEST_P(Rwkv7EngineTest, ScoreEqualsSampling) {
  h_.Start();
  const auto sink = h_.Run(Sampled(Prompt(20, 1), 5));
  ScoreRequest score;
  score.request_id = "score";
  score.prompt = Prompt(20, 1);
  score.continuation = sink->tokens();
  const auto scored = std::make_shared<CollectingScoreSink>();
  ASSERT_TRUE(h_.engine->Submit(score, scored).ok());
  scored->Wait();
  ASSERT_EQ(scored->logprobs.size(), sink->events.size());
  for (size_t i = 0; i < scored->logprobs.size(); ++i) {
    EXPECT_EQ(scored->logprobs[i], sink->events[i].logprob) << i;
  }
}

TEST_P(Rwkv7EngineTest, SeveralSequencesEqualEachAlone) {
  h_.options.slots = 3;
  h_.Start();
  GenerateRequest request = Sampled(Prompt(40, 1), 5);
  request.num_sequences = 5;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(std::make_shared<CollectingSink>());
  ASSERT_TRUE(h_.engine->Submit(request, {sinks.begin(), sinks.end()}).ok());
  for (int i = 0; i < 5; ++i) {
    sinks[i]->Wait();
    EXPECT_EQ(OutputOf(*sinks[i]), OutputOf(*h_.Run(Sampled(Prompt(40, 1), 5 + i)))) << i;
  }
}

TEST_P(Rwkv7EngineTest, PromptLogprobsEqualScore) {
  h_.options.max_prefill_chunk = 7;
  h_.Start();
  GenerateRequest request = Sampled(Prompt(50, 2), 5);
  request.want_prompt_logprobs = true;
  const auto sink = h_.Run(request);
  ScoreRequest score;
  score.request_id = "score";
  score.prompt = {request.input[0]};
  score.continuation.assign(request.input.begin() + 1, request.input.end());
  const auto scored = std::make_shared<CollectingScoreSink>();
  ASSERT_TRUE(h_.engine->Submit(score, scored).ok());
  scored->Wait();
  ASSERT_EQ(sink->prompt.size(), 50u);
  for (int i = 1; i < 50; ++i) EXPECT_EQ(sink->prompt[i].value, scored->logprobs[i - 1]) << i;
  EXPECT_EQ(OutputOf(*sink), OutputOf(*h_.Run(Sampled(Prompt(50, 2), 5))));
}

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (const char* tier : {"plain", "avx2", "avx512", "avx512bf16", "amx"}) {
    std::string error;
    if (kernels::NewCpuDevice({.threads = 1, .tier = tier}, &error) != nullptr)
      tiers.push_back(tier);
  }
  return tiers;
}

INSTANTIATE_TEST_SUITE_P(Tiers, Rwkv7EngineTest,
                         ::testing::Combine(::testing::ValuesIn(Tiers()),
                                            ::testing::Values(DType::kF32, DType::kBF16, DType::kI8,
                                                              DType::kI8A8)),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) == DType::kF32    ? "_fp32"
                                   : std::get<1>(info.param) == DType::kBF16 ? "_bf16"
                                   : std::get<1>(info.param) == DType::kI8   ? "_int8"
                                                                             : "_int8a8");
                         });

}  // namespace
}  // namespace skein::engine
