// num_sequences: one prefill, then sequences that go their own ways.

#include <gmock/gmock.h>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::IsEmpty;

using Sinks = std::vector<std::shared_ptr<CollectingSink>>;

class SeveralSequencesTest : public ::testing::Test {
 protected:
  ConversationStore& store() { return h_.engine->conversations(); }
  GenerateRequest Sampled(std::vector<int32_t> input, int32_t n, uint64_t seed,
                          std::string conversation = "") {
    GenerateRequest request = h_.Request(std::move(input), std::move(conversation));
    request.num_sequences = n;
    request.sampling.temperature = 1;
    request.sampling.seed = seed;
    request.want_logprobs = true;
    request.stopping.max_tokens = 12;
    return request;
  }
  // The same request of one index alone.
  GenerateRequest Alone(GenerateRequest request, int32_t index) {
    request.request_id = absl::StrCat("alone", next_++);
    request.sampling.seed = SequenceSeed(*request.sampling.seed, index);
    request.num_sequences = 1;
    request.commit = CommitMode::kNever;
    return request;
  }
  Sinks Submit(const GenerateRequest& request) {
    Sinks sinks;
    for (int i = 0; i < request.num_sequences; ++i)
      sinks.push_back(std::make_shared<CollectingSink>());
    const absl::Status status = h_.engine->Submit(
        request, std::vector<std::shared_ptr<ResponseSink>>(sinks.begin(), sinks.end()));
    EXPECT_TRUE(status.ok()) << status;
    for (const auto& sink : sinks) {
      if (!status.ok()) sink->OnError(status);
    }
    return sinks;
  }
  static ConversationKey Key(const std::string& id) { return {"", id}; }
  static std::vector<std::shared_ptr<ResponseSink>> Empty(int32_t n) {
    std::vector<std::shared_ptr<ResponseSink>> sinks;
    for (int32_t i = 0; i < n; ++i) sinks.push_back(std::make_shared<CollectingSink>());
    return sinks;
  }
  Sinks Run(const GenerateRequest& request) {
    Sinks sinks = Submit(request);
    for (const auto& sink : sinks) sink->Wait();
    return sinks;
  }
  // Ids and the exact bits of their log-probabilities.
  static std::vector<std::pair<int32_t, float>> Output(const CollectingSink& sink) {
    std::vector<std::pair<int32_t, float>> output;
    for (const TokenEvent& event : sink.events) output.emplace_back(event.token, event.logprob);
    return output;
  }
  void ExpectEachEqualsItselfAlone(const GenerateRequest& request, const Sinks& sinks) {
    for (int i = 0; i < request.num_sequences; ++i) {
      ASSERT_TRUE(sinks[i]->finished.has_value()) << sinks[i]->error;
      const auto alone = h_.Run(Alone(request, i));
      EXPECT_EQ(Output(*sinks[i]), Output(*alone)) << i;
      EXPECT_EQ(sinks[i]->text, alone->text) << i;
      EXPECT_EQ(sinks[i]->finished->reason, alone->finished->reason) << i;
      EXPECT_EQ(sinks[i]->finished->usage.completion_tokens,
                alone->finished->usage.completion_tokens);
      EXPECT_EQ(sinks[i]->started->seed, SequenceSeed(*request.sampling.seed, i));
    }
  }
  Harness h_;
  int next_ = 0;
};

TEST_F(SeveralSequencesTest, EachIndexEqualsTheSameRequestAlone) {
  h_.Start();
  const GenerateRequest request = Sampled({10, 20, 30, 40}, 6, 99);
  const Sinks sinks = Run(request);
  ExpectEachEqualsItselfAlone(request, sinks);
  EXPECT_NE(sinks[0]->tokens(), sinks[1]->tokens());
  EXPECT_EQ(store().gauges().conversations, 0);
  EXPECT_EQ(h_.engine->gauges().slots_used, 0);
}

TEST_F(SeveralSequencesTest, ThePromptIsTakenInOnce) {
  h_.Start();
  GenerateRequest request = Sampled(std::vector<int32_t>(100, 7), 5, 1);
  request.stopping.max_tokens = 1;
  Run(request);
  EXPECT_EQ(h_.model.tokens_fed, 99 + 5);
}

TEST_F(SeveralSequencesTest, MoreThanThereAreSlots) {
  h_.options.slots = 2;
  h_.Start();
  const GenerateRequest request = Sampled({10, 20, 30, 40}, 9, 5);
  const auto other = h_.Submit(h_.Request({1, 2}));
  const Sinks sinks = Run(request);
  other->Wait();
  ExpectEachEqualsItselfAlone(request, sinks);
  EXPECT_EQ(h_.engine->gauges().slots_used, 0);
}

TEST_F(SeveralSequencesTest, OnePromptToken) {
  h_.options.slots = 2;
  h_.Start();
  const GenerateRequest request = Sampled({10}, 4, 3);
  ExpectEachEqualsItselfAlone(request, Run(request));
}

TEST_F(SeveralSequencesTest, StopsAreEachIndexsOwn) {
  h_.Start();
  GenerateRequest request = Sampled({10, 20}, 8, 77);
  request.stopping.max_tokens = 200;
  for (char c = 'a'; c < 'z'; ++c) {  // two in a row: after a while, at different places
    request.stopping.stop_strings.push_back(std::string(1, c) + static_cast<char>(c + 1));
    request.stopping.stop_strings.push_back(std::string(1, static_cast<char>(c - 32)));
  }
  const Sinks sinks = Run(request);
  ExpectEachEqualsItselfAlone(request, sinks);
  std::vector<int64_t> lengths;
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
    lengths.push_back(sink->finished->usage.completion_tokens);
  }
  EXPECT_NE(lengths, std::vector<int64_t>(8, lengths[0]));
}

TEST_F(SeveralSequencesTest, AnErrorIsThatIndexsAlone) {
  h_.model.poison = 250;  // an index that samples it fails at its next token
  h_.Start();
  GenerateRequest request = Sampled({10, 20}, 8, 4);
  request.stopping.max_tokens = 30;
  request.sampling.logit_bias = {{250, 2.0f}};
  const Sinks sinks = Run(request);
  int failed = 0;
  for (int i = 0; i < 8; ++i) {
    const auto alone = h_.Run(Alone(request, i));
    EXPECT_EQ(sinks[i]->error.code(), alone->error.code()) << i;
    EXPECT_EQ(Output(*sinks[i]), Output(*alone)) << i;
    failed += sinks[i]->error.ok() ? 0 : 1;
  }
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 8);
  EXPECT_EQ(h_.engine->gauges().slots_used, 0);
}

TEST_F(SeveralSequencesTest, CancelEndsAll) {
  h_.options.slots = 3;
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  h_.Start();
  GenerateRequest request = Sampled({10, 20}, 5, 4);
  request.stopping.max_tokens = 100000;
  for (const bool early : {true, false}) {
    request.request_id = early ? "early" : "late";
    const Sinks sinks = Submit(request);
    if (!early) sinks[2]->WaitForTokens(3);
    EXPECT_TRUE(h_.engine->Cancel(request.request_id, true));
    for (const auto& sink : sinks) {
      sink->Wait();
      ASSERT_TRUE(sink->finished.has_value()) << sink->error;
      EXPECT_EQ(sink->finished->reason, FinishReason::kCancelled);
    }
    EXPECT_FALSE(h_.engine->Cancel(request.request_id, true));
    EXPECT_EQ(h_.engine->gauges().running, 0);
    EXPECT_EQ(h_.engine->gauges().slots_used, 0);
  }
  // In the middle of a long prompt, before they part.
  request.request_id = "prefill";
  request.input.assign(100000, 7);
  const Sinks sinks = Submit(request);
  sinks[0]->WaitForStart();
  EXPECT_TRUE(h_.engine->Cancel("prefill", false));
  for (const auto& sink : sinks) {
    sink->Wait();
    EXPECT_EQ(sink->error.code(), absl::StatusCode::kCancelled);
    EXPECT_THAT(sink->events, IsEmpty());
  }
  EXPECT_EQ(h_.engine->gauges().running, 0);
}

TEST_F(SeveralSequencesTest, EachBecomesAConversationAndTheOriginalStays) {
  h_.options.slots = 2;
  h_.Start();
  const auto first = h_.Run(h_.Request({5, 6, 7}, "c"));
  const std::vector<int32_t> before = h_.Tokens("c");
  const GenerateRequest request = Sampled({8, 9}, 4, 11, "c");
  const Sinks sinks = Run(request);
  ExpectEachEqualsItselfAlone(request, sinks);
  EXPECT_EQ(h_.Tokens("c"), before);
  EXPECT_EQ(store().Get(Key("c"))->head, 1);
  EXPECT_FALSE(store().Get(Key("c"))->busy);
  EXPECT_EQ(store().gauges().conversations, 5);
  for (const auto& sink : sinks) {
    const std::string id = sink->started->conversation_id;
    EXPECT_NE(id, "c");
    EXPECT_TRUE(sink->started->created);
    EXPECT_EQ(sink->started->version, 1);
    EXPECT_TRUE(sink->finished->committed);
    EXPECT_EQ(sink->finished->version, 2);
    EXPECT_EQ(h_.Tokens(id), Join(Join(before, {8, 9}), sink->tokens()));
    h_.ExpectExact(id);
    h_.ExpectExact(id, 1);
    EXPECT_EQ(h_.Run(h_.Request({13}, id))->started->restored_from, "host");
  }
}

TEST_F(SeveralSequencesTest, ABusyConversationCanBeSampledFrom) {
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  h_.Start();
  h_.Run(h_.Request({5, 6, 7}, "c"));
  GenerateRequest writing = h_.Request({8}, "c");
  writing.stopping.max_tokens = 100000;
  const auto writer = h_.Submit(writing);
  const Sinks sinks = Run(Sampled({9}, 2, 3, "c"));
  EXPECT_EQ(sinks[1]->started->version, 1);
  EXPECT_TRUE(store().Get(Key("c"))->busy);
  h_.engine->Cancel(writing.request_id, true);
  writer->Wait();
}

TEST_F(SeveralSequencesTest, NothingIsMadeUnderNever) {
  h_.Start();
  h_.Run(h_.Request({5, 6, 7}, "c"));
  GenerateRequest request = Sampled({8, 9}, 3, 11, "c");
  request.commit = CommitMode::kNever;
  const Sinks sinks = Run(request);
  ExpectEachEqualsItselfAlone(request, sinks);
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->started->conversation_id, "");
    EXPECT_EQ(sink->started->version, 1);
    EXPECT_FALSE(sink->finished->committed);
  }
  EXPECT_EQ(store().gauges().conversations, 1);
}

TEST_F(SeveralSequencesTest, WhatFailsLeavesNoConversation) {
  h_.options.slots = 2;
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  h_.Start();
  h_.Run(h_.Request({5, 6, 7}, "c"));
  for (const bool keep : {false, true}) {
    GenerateRequest request = Sampled({8, 9}, 4, 11, "c");
    request.stopping.max_tokens = 100000;
    if (keep) request.commit = CommitMode::kKeepPartial;
    const Sinks sinks = Submit(request);
    sinks[0]->WaitForTokens(2);
    h_.engine->Cancel(request.request_id, true);
    for (const auto& sink : sinks) {
      sink->Wait();
      EXPECT_EQ(sink->finished->committed, keep);
      if (keep) h_.ExpectExact(sink->started->conversation_id);
    }
    EXPECT_EQ(store().gauges().conversations, keep ? 5 : 1);
  }
}

TEST_F(SeveralSequencesTest, KeepPartialBeforeTheyPart) {
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  h_.Start();
  GenerateRequest request = Sampled(std::vector<int32_t>(2000, 7), 3, 11, "new");
  request.commit = CommitMode::kKeepPartial;
  const Sinks sinks = Submit(request);
  sinks[2]->WaitForStart();
  h_.engine->Cancel(request.request_id, true);
  for (const auto& sink : sinks) {
    sink->Wait();
    ASSERT_TRUE(sink->finished->committed);
    EXPECT_EQ(h_.Tokens(sink->started->conversation_id), request.input);
  }
  h_.model.before_step = nullptr;
  EXPECT_FALSE(store().Get(Key("new")).ok());
  h_.ExpectExact(sinks[2]->started->conversation_id);
}

TEST_F(SeveralSequencesTest, OnlyTakingTheTextIn) {
  h_.options.slots = 2;
  h_.Start();
  GenerateRequest request = Sampled({8, 9, 10}, 3, 11, "new");
  request.stopping.max_tokens = 0;
  for (const auto& sink : Run(request)) {
    EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
    EXPECT_EQ(h_.Tokens(sink->started->conversation_id), request.input);
    const auto next = h_.Run(h_.Request({}, sink->started->conversation_id));
    EXPECT_NE(next->started->restored_from, "tokens");
    EXPECT_EQ(next->tokens(), h_.OneShot({8, 9, 10}, 4));
  }
}

TEST_F(SeveralSequencesTest, Refusals) {
  h_.Start();
  GenerateRequest request = Sampled({8}, 2, 1, "none");
  const auto refused = [&] {
    return h_.engine->Submit(request, Empty(request.num_sequences)).code();
  };
  request.create_if_missing = false;
  EXPECT_EQ(refused(), absl::StatusCode::kNotFound);
  h_.Run(h_.Request({5, 6, 7}, "c"));
  request.conversation_id = "c";
  request.expected_version = 7;
  EXPECT_EQ(refused(), absl::StatusCode::kFailedPrecondition);
  request.expected_version = 1;
  request.base_version = 3;
  EXPECT_EQ(refused(), absl::StatusCode::kNotFound);
  request.base_version = 0;
  request.input.clear();  // nothing to go on from
  EXPECT_EQ(refused(), absl::StatusCode::kInvalidArgument);
  request.commit = CommitMode::kNever;
  EXPECT_EQ(refused(), absl::StatusCode::kInvalidArgument);
  request.num_sequences = 0;
  EXPECT_EQ(refused(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store().gauges().conversations, 1);
  EXPECT_EQ(h_.engine->gauges().waiting, 0);
}

TEST_F(SeveralSequencesTest, TheIdIsFreeOnceAllHaveEnded) {
  h_.Start();
  GenerateRequest request = Sampled({10, 20}, 3, 4);
  request.request_id = "same";
  Run(request);
  Run(request);
  h_.engine->Drain(absl::Now() + kPatience);  // nothing is left to wait for
}

}  // namespace
}  // namespace skein::engine
