// Log-probabilities of the input's tokens.

#include <gmock/gmock.h>

#include <cmath>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

class PromptLogprobsTest : public ::testing::Test {
 protected:
  GenerateRequest Asking(std::vector<int32_t> input, std::string conversation = "") {
    GenerateRequest request = h_.Request(std::move(input), std::move(conversation));
    request.want_prompt_logprobs = true;
    return request;
  }
  // What Score says of tokens[1..] given tokens[0].
  std::vector<float> Scored(const std::vector<int32_t>& tokens, size_t from) {
    ScoreRequest request;
    request.request_id = absl::StrCat("score", next_++);
    request.prompt.assign(tokens.begin(), tokens.begin() + from);
    request.continuation.assign(tokens.begin() + from, tokens.end());
    const auto sink = std::make_shared<CollectingScoreSink>();
    EXPECT_TRUE(h_.engine->Submit(request, sink).ok());
    sink->Wait();
    return sink->logprobs;
  }
  // All input tokens in order, one value each; the bits of those from `from` on equal Score's.
  void ExpectScores(const CollectingSink& sink, const std::vector<int32_t>& before,
                    const std::vector<int32_t>& input) {
    ASSERT_EQ(sink.prompt.size(), input.size());
    const size_t from = before.empty() ? 1 : 0;
    EXPECT_EQ(std::isnan(sink.prompt[0].value), from == 1);
    std::vector<float> got;
    for (size_t i = 0; i < input.size(); ++i) {
      EXPECT_EQ(sink.prompt[i].token, input[i]) << i;
      if (i >= from) got.push_back(sink.prompt[i].value);
    }
    if (got.empty()) return;
    EXPECT_EQ(got, Scored(Join(before, input), before.size() + from));
  }
  Harness h_;
  int next_ = 0;
};

std::vector<int32_t> Prompt(int n) {
  std::vector<int32_t> prompt;
  for (int i = 0; i < n; ++i) prompt.push_back(1 + (i * 37) % 250);
  return prompt;
}

TEST_F(PromptLogprobsTest, EqualScoreHoweverThePromptIsCut) {
  for (const int32_t chunk : {1, 3, 16}) {
    for (const int n : {1, 2, 3, 100}) {
      h_.options.max_prefill_chunk = chunk;
      h_.options.slots = 4;  // and so 4 rows of logits a step
      h_.Start();
      const auto sink = h_.Run(Asking(Prompt(n)));
      ASSERT_TRUE(sink->finished.has_value()) << sink->error;
      ExpectScores(*sink, {}, Prompt(n));
      EXPECT_EQ(sink->tokens(), h_.OneShot(Prompt(n), 4)) << "they change nothing";
      EXPECT_EQ(sink->finished->usage.prompt_tokens, n);
    }
  }
}

TEST_F(PromptLogprobsTest, InAConversationGoOnFromItsLastToken) {
  h_.Start();
  h_.Run(h_.Request({5, 6, 7}, "c"));
  const std::vector<int32_t> before = h_.Tokens("c");
  const auto sink = h_.Run(Asking({8, 9, 10}, "c"));
  ExpectScores(*sink, before, {8, 9, 10});
  h_.ExpectExact("c");
  EXPECT_TRUE(h_.Run(Asking({}, "c"))->prompt.empty());
}

TEST_F(PromptLogprobsTest, AfterAStopTheStateIsTakenFromBefore) {
  h_.model.script = [](int64_t consumed) { return consumed == 5 ? 0 : -1; };
  h_.Start();
  GenerateRequest request = h_.Request({5, 6, 7}, "c");
  request.stopping.ignore_eos = false;
  ASSERT_EQ(h_.Run(request)->finished->reason, FinishReason::kStop);
  h_.model.script = nullptr;
  const std::vector<int32_t> before = h_.Tokens("c");
  ExpectScores(*h_.Run(Asking({8, 9}, "c")), before, {8, 9});
}

TEST_F(PromptLogprobsTest, WithoutOutput) {
  h_.Start();
  GenerateRequest request = Asking(Prompt(20), "c");
  request.stopping.max_tokens = 0;
  ExpectScores(*h_.Run(request), {}, Prompt(20));
  h_.ExpectExact("c");
}

TEST_F(PromptLogprobsTest, OfSeveralSequencesTheFirstTellsThem) {
  h_.Start();
  GenerateRequest request = Asking(Prompt(20));
  request.num_sequences = 3;
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 3; ++i) sinks.push_back(std::make_shared<CollectingSink>());
  ASSERT_TRUE(h_.engine->Submit(request, {sinks[0], sinks[1], sinks[2]}).ok());
  for (const auto& sink : sinks) {
    sink->Wait();
    EXPECT_EQ(sink->tokens(), h_.OneShot(Prompt(20), 4));
  }
  ExpectScores(*sinks[0], {}, Prompt(20));
  EXPECT_TRUE(sinks[1]->prompt.empty());
}

TEST_F(PromptLogprobsTest, BesideOtherRows) {
  h_.Start();
  GenerateRequest decoding = h_.Request({1, 2, 3});
  decoding.stopping.max_tokens = 200;
  const auto neighbour = h_.Submit(decoding);
  std::vector<std::shared_ptr<CollectingSink>> sinks;
  for (int i = 0; i < 5; ++i) sinks.push_back(h_.Submit(Asking(Prompt(40 + i))));
  for (int i = 0; i < 5; ++i) {
    sinks[i]->Wait();
    ExpectScores(*sinks[i], {}, Prompt(40 + i));
  }
  neighbour->Wait();
  EXPECT_EQ(neighbour->tokens(), h_.OneShot({1, 2, 3}, 200));
}

TEST_F(PromptLogprobsTest, NaNFailsTheRow) {
  h_.model.poison = 250;
  h_.Start();
  EXPECT_EQ(h_.Run(Asking({5, 250, 6, 7}))->error.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(h_.Run(Asking({5, 6}))->prompt.size(), 2u);
}

}  // namespace
}  // namespace skein::engine
