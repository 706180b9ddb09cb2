// Requests that begin with a declared prompt state.

#include <gmock/gmock.h>

#include "engine/base/status.h"
#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;

const std::vector<int32_t> kPrompt = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3};

class Observer final : public EngineObserver {
 public:
  void OnStep(const StepReport& report) override { prefilled += report.prefill_tokens; }
  void OnRequestDone(const RequestReport&) override { ++requests; }
  std::atomic<int64_t> prefilled{0};
  std::atomic<int> requests{0};
};

class PromptStateTest : public ::testing::Test {
 protected:
  void Start() {
    h_.observer = &observer_;
    h_.Start();
  }
  std::shared_ptr<const PromptState> Declared(std::vector<int32_t> tokens = kPrompt) {
    auto prompt = std::make_shared<PromptState>();
    prompt->name = "greeting";
    prompt->model = h_.engine->tag();
    prompt->tokens = std::move(tokens);
    return prompt;
  }
  std::shared_ptr<const PromptState> Computed(std::vector<int32_t> tokens = kPrompt) {
    auto computed = h_.engine->Compute(*Declared(std::move(tokens)), [] { return true; });
    EXPECT_TRUE(computed.ok()) << computed.status();
    return computed.value_or(nullptr);
  }
  GenerateRequest Request(std::vector<int32_t> input, std::shared_ptr<const PromptState> prompt,
                          std::string conversation = "") {
    GenerateRequest request = h_.Request(std::move(input), std::move(conversation));
    request.sampling.temperature = 1;
    request.sampling.seed = 11;
    request.want_logprobs = true;
    request.stopping.max_tokens = 12;
    request.prompt = std::move(prompt);
    return request;
  }
  // Ids and the exact bits of their log-probabilities.
  static std::vector<std::pair<int32_t, float>> Output(const CollectingSink& sink) {
    std::vector<std::pair<int32_t, float>> output;
    for (const TokenEvent& event : sink.events) output.emplace_back(event.token, event.logprob);
    return output;
  }
  VersionInfo Version(const std::string& id, int64_t version) {
    const auto history = h_.store->History({"", id});
    for (const VersionInfo& v : *history) {
      if (v.id == version) return v;
    }
    ADD_FAILURE() << "no version " << version;
    return {};
  }

  Observer observer_;
  Harness h_;
};

TEST_F(PromptStateTest, IsTheStateBeforeTheLastToken) {
  Start();
  const auto prompt = Computed();
  ASSERT_NE(prompt->snapshot, nullptr);
  EXPECT_TRUE(prompt->computed());
  EXPECT_FALSE(Declared()->computed());
  EXPECT_EQ(prompt->snapshot->consumed, 9);
  EXPECT_EQ(prompt->snapshot->model_fingerprint, kFingerprint);
  EXPECT_EQ(prompt->tokens, kPrompt);
  EXPECT_EQ(observer_.requests, 0) << "it is no client's request";
  EXPECT_EQ(h_.engine->gauges().slots_used, 0);
  const auto one = Computed({7});
  EXPECT_EQ(one->snapshot, nullptr);
  EXPECT_TRUE(one->computed());
}

TEST_F(PromptStateTest, GivesWhatTheSameTokensGive) {
  Start();
  const auto same = h_.Run(Request(Join(kPrompt, {20, 21}), nullptr));
  for (const auto& prompt : {Computed(), Declared(), Computed()}) {
    const auto turn = h_.Run(Request({20, 21}, prompt));
    EXPECT_EQ(Output(*turn), Output(*same));
    EXPECT_EQ(turn->finished->usage.prompt_tokens, 2);
    EXPECT_EQ(turn->finished->usage.reused_tokens, prompt->snapshot == nullptr ? 0 : 9);
    EXPECT_EQ(turn->finished->usage.conversation_tokens, 10 + 2 + 12);
    EXPECT_EQ(turn->started->tokens_reused, prompt->snapshot == nullptr ? 0 : 9);
    EXPECT_EQ(turn->started->conversation_id, "");
  }
  // Of a single token there is no state, and nothing to add to the prompt.
  EXPECT_EQ(Output(*h_.Run(Request({20}, Computed({7})))),
            Output(*h_.Run(Request({7, 20}, nullptr))));
  EXPECT_EQ(Output(*h_.Run(Request({}, Computed()))), Output(*h_.Run(Request(kPrompt, nullptr))));
}

TEST_F(PromptStateTest, IsTakenInOnce) {
  Start();
  const auto prompt = Computed();
  const int64_t before = observer_.prefilled;
  EXPECT_EQ(before, 9);
  for (int i = 0; i < 4; ++i) h_.Run(Request({20, 21}, prompt));
  EXPECT_EQ(observer_.prefilled - before, 4 * 3);  // its last token, and the input
  EXPECT_EQ(observer_.requests, 4);
}

TEST_F(PromptStateTest, IsAVersionOfItsOwn) {
  Start();
  const auto prompt = Computed();
  const auto turn = h_.Run(Request({20, 21}, prompt, "c"));
  ASSERT_TRUE(turn->finished->committed);
  EXPECT_EQ(turn->finished->version, 2);
  EXPECT_EQ(turn->started->version, 0);
  EXPECT_TRUE(turn->started->created);
  const VersionInfo first = Version("c", 1), second = Version("c", 2);
  EXPECT_EQ(first.input, kPrompt);
  EXPECT_TRUE(first.output.empty());
  EXPECT_EQ(first.prompt_state, "greeting");
  EXPECT_EQ(first.parent, 0);
  EXPECT_TRUE(first.has_state);
  EXPECT_THAT(second.input, ElementsAre(20, 21));
  EXPECT_EQ(second.parent, 1);
  EXPECT_EQ(second.prompt_state, "");
  EXPECT_EQ(second.tokens, 10 + 2 + 12);
  h_.ExpectExact("c");
  h_.ExpectExact("c", 1);
  // The same again from its first version.
  ASSERT_TRUE(h_.store->Rewind({"", "c"}, 1).ok());
  EXPECT_EQ(Output(*h_.Run(Request({20, 21}, nullptr, "c"))), Output(*turn));
}

TEST_F(PromptStateTest, RebuildsWhatWasEvicted) {
  h_.store_options.budget_bytes = 1;
  Start();
  const auto prompt = Computed();
  const auto turn = h_.Run(Request({20, 21}, prompt, "c"));
  EXPECT_EQ(turn->finished->usage.reused_tokens, 9) << "the declared state is not the store's";
  EXPECT_FALSE(Version("c", 1).has_state);
  h_.ExpectExact("c");
  h_.ExpectExact("c", 1);
}

TEST_F(PromptStateTest, OnlyWhereNothingComesBefore) {
  Start();
  const auto prompt = Computed();
  h_.Run(Request({20}, nullptr, "c"));
  const absl::Status refused = h_.Refused(Request({21}, prompt, "c"));
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(base::Reason(refused), "CONVERSATION_NOT_EMPTY");
  EXPECT_FALSE(h_.store->Get({"", "c"})->busy);
  GenerateRequest branch = Request({21}, prompt, "c");
  branch.base_version = 0;
  const auto turn = h_.Run(branch);
  EXPECT_EQ(turn->finished->version, 3);
  EXPECT_EQ(h_.Tokens("c"), Join(Join(kPrompt, {21}), turn->tokens()));
  h_.ExpectExact("c");
}

TEST_F(PromptStateTest, LeavesNothingWithoutACommit) {
  Start();
  GenerateRequest request = Request({20}, Computed(), "c");
  request.commit = CommitMode::kNever;
  const auto turn = h_.Run(request);
  EXPECT_EQ(turn->finished->usage.conversation_tokens, 0);
  EXPECT_EQ(h_.store->Get({"", "c"}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(h_.store->gauges().snapshot_bytes, 0);
  EXPECT_EQ(h_.store->gauges().token_bytes, 0);
}

TEST_F(PromptStateTest, OfSeveralSequences) {
  Start();
  const auto prompt = Computed();
  for (const std::string conversation : {"", "c"}) {
    GenerateRequest request = Request({20, 21}, prompt, conversation);
    request.num_sequences = 3;
    std::vector<std::shared_ptr<ResponseSink>> sinks;
    std::vector<std::shared_ptr<CollectingSink>> collected;
    for (int i = 0; i < 3; ++i) sinks.push_back(collected.emplace_back(new CollectingSink));
    ASSERT_TRUE(h_.engine->Submit(request, sinks).ok());
    for (int i = 0; i < 3; ++i) {
      collected[i]->Wait();
      GenerateRequest alone = Request(Join(kPrompt, {20, 21}), nullptr);
      alone.sampling.seed = SequenceSeed(11, i);
      EXPECT_EQ(Output(*collected[i]), Output(*h_.Run(alone))) << i;
      if (conversation.empty()) continue;
      const std::string& id = collected[i]->started->conversation_id;
      EXPECT_EQ(collected[i]->finished->version, 2);
      EXPECT_EQ(Version(id, 1).prompt_state, "greeting");
      h_.ExpectExact(id);
    }
  }
}

TEST_F(PromptStateTest, CountsForPenaltiesOverTheConversation) {
  Start();
  const auto penalised = [&](std::vector<int32_t> input,
                             std::shared_ptr<const PromptState> prompt) {
    GenerateRequest request = Request(std::move(input), std::move(prompt));
    request.sampling.penalty_scope = PenaltyScope::kConversation;
    request.sampling.frequency_penalty = 2;
    return Output(*h_.Run(request));
  };
  EXPECT_EQ(penalised({20}, Computed()), penalised(Join(kPrompt, {20}), nullptr));
}

TEST_F(PromptStateTest, PromptLogprobsAreOfTheInput) {
  Start();
  GenerateRequest whole = Request(Join(kPrompt, {20, 21, 22}), nullptr);
  whole.want_prompt_logprobs = true;
  GenerateRequest after = Request({20, 21, 22}, Computed());
  after.want_prompt_logprobs = true;
  const auto all = h_.Run(whole), some = h_.Run(after);
  ASSERT_EQ(some->prompt.size(), 3u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(some->prompt[i].token, 20 + i);
    EXPECT_EQ(some->prompt[i].value, all->prompt[10 + i].value);
  }
  EXPECT_EQ(Output(*some), Output(*all));
}

TEST_F(PromptStateTest, AFullQueueDoesNotRefuseIt) {
  h_.options.slots = 1;
  h_.options.max_queued = 1;
  h_.options.max_queued_tokens = 4;
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  Start();
  GenerateRequest endless = Request({1}, nullptr);
  endless.stopping.max_tokens = 1 << 20;
  const auto running = h_.Submit(endless);
  running->WaitForTokens(1);
  const auto waiting = h_.Submit(Request({2}, nullptr));
  EXPECT_EQ(base::Reason(h_.Refused(Request({3}, nullptr))), "QUEUE_FULL");
  std::thread unblock([&] {
    while (h_.engine->gauges().waiting < 2) absl::SleepFor(absl::Milliseconds(1));
    h_.engine->Cancel(endless.request_id, true);
  });
  EXPECT_NE(Computed(), nullptr);
  unblock.join();
  waiting->Wait();
}

TEST_F(PromptStateTest, GivenUpAndDrained) {
  h_.model.before_step = [](const StepBatch&) { absl::SleepFor(absl::Milliseconds(1)); };
  Start();
  const auto prompt = Declared(std::vector<int32_t>(1 << 20, 7));
  EXPECT_EQ(h_.engine->Compute(*prompt, [] { return false; }).status().code(),
            absl::StatusCode::kCancelled);
  h_.engine->BeginDrain(absl::Now() + absl::Hours(1));
  EXPECT_EQ(h_.engine->Compute(*prompt, [] { return true; }).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace skein::engine
