// What a request's sampling sees beyond its own tokens: the conversation's for penalties, and what
// a constraint allows.

#include <gmock/gmock.h>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;

GenerateRequest Penalized(EngineHarness* h, std::vector<int32_t> input, std::string conversation) {
  GenerateRequest request = h->Request(std::move(input), std::move(conversation));
  request.sampling.temperature = 1;
  request.sampling.seed = 3;
  request.sampling.frequency_penalty = 1.5f;
  request.sampling.presence_penalty = 0.5f;
  request.sampling.repetition_penalty = 1.3f;
  request.sampling.penalty_decay = 0.97f;
  request.sampling.penalty_scope = PenaltyScope::kConversation;
  request.stopping.max_tokens = 20;
  return request;
}

TEST(PenaltyScopeConversation, CountsAllTokensHoweverTheStateCame) {
  Harness h;
  h.options.slots = 4;
  h.store_options.history = 1;
  h.Start();
  std::vector<int32_t> all;
  for (int turn = 0; turn < 4; ++turn) {
    const std::vector<int32_t> input(5, 10 + turn);
    all = Join(all, input);
    const auto whole = h.Run(Penalized(&h, all, ""))->tokens();
    EXPECT_EQ(h.Run(Penalized(&h, input, "c"))->tokens(), whole) << turn;
    GenerateRequest narrow = Penalized(&h, all, "");
    narrow.sampling.penalty_scope = PenaltyScope::kRequest;
    EXPECT_NE(h.Run(narrow)->tokens(), whole) << turn;
    all = Join(all, whole);
  }
  GenerateRequest rebuilt = Penalized(&h, {20}, "c");  // of a version whose state is gone
  rebuilt.base_version = 2;
  const auto sink = h.Run(rebuilt);
  EXPECT_EQ(sink->started->restored_from, "tokens");
  EXPECT_EQ(sink->tokens(), h.Run(Penalized(&h, Join(h.Tokens("c", 2), {20}), ""))->tokens());
}

TEST(PenaltyScopeConversation, EachOfSeveralSequences) {
  Harness h;
  h.Start();
  h.Run(h.Request({5, 6, 7}, "c"));
  GenerateRequest request = Penalized(&h, {8}, "c");
  request.num_sequences = 2;
  request.commit = CommitMode::kNever;
  const auto a = std::make_shared<CollectingSink>(), b = std::make_shared<CollectingSink>();
  ASSERT_TRUE(h.engine->Submit(request, {a, b}).ok());
  a->Wait();
  b->Wait();
  const std::vector<int32_t> all = Join(h.Tokens("c"), {8});
  GenerateRequest alone = Penalized(&h, all, "");
  EXPECT_EQ(a->tokens(), h.Run(alone)->tokens());
  alone = Penalized(&h, all, "");
  alone.sampling.seed = 4;
  EXPECT_EQ(b->tokens(), h.Run(alone)->tokens());
}

// Allows one token after the other of a fixed list, then id 0.
class Script final : public Constraint {
 public:
  Script(int32_t V, std::vector<int32_t> script) : words_((V + 31) / 32, 0), script_(script) {
    Allow();
  }
  std::span<const uint32_t> Allowed() const override { return words_; }
  void Accept(int32_t token) override {
    EXPECT_EQ(token, Next());
    ++place_;
    Allow();
  }
  std::unique_ptr<Constraint> Clone() const override { return std::make_unique<Script>(*this); }

 private:
  int32_t Next() const { return place_ < script_.size() ? script_[place_] : 0; }
  void Allow() {
    words_.assign(words_.size(), 0);
    if (Next() >= 0) words_[Next() / 32] |= uint32_t{1} << (Next() % 32);
  }
  std::vector<uint32_t> words_;
  const std::vector<int32_t> script_;
  size_t place_ = 0;
};

class ConstraintTest : public ::testing::Test {
 protected:
  GenerateRequest Following(std::vector<int32_t> script) {
    GenerateRequest request = h_.Request({1, 2});
    request.constraint = std::make_shared<Script>(h_.model.config().V, std::move(script));
    request.sampling.temperature = 1;
    request.stopping.ignore_eos = false;
    request.stopping.max_tokens = 50;
    return request;
  }
  Harness h_{{"", "word"}};  // id 257 stands for nothing
};

TEST_F(ConstraintTest, OnlyWhatItAllowsIsSampled) {
  h_.Start();
  const auto sink = h_.Run(Following({70, 71, 258, 72}));
  EXPECT_THAT(sink->tokens(), ElementsAre(70, 71, 258, 72));
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_token, 0);
}

TEST_F(ConstraintTest, WhenItAllowsNothingTheSequenceFails) {
  h_.Start();
  const auto neighbour = h_.Submit(h_.Request({5, 6}));
  const auto sink = h_.Run(Following({70, -1}));
  EXPECT_THAT(sink->tokens(), ElementsAre(70));
  EXPECT_EQ(sink->error.code(), absl::StatusCode::kFailedPrecondition) << sink->error;
  // Nor does it bring back ids that stand for nothing.
  EXPECT_EQ(h_.Run(Following({257}))->error.code(), absl::StatusCode::kFailedPrecondition);
  neighbour->Wait();
  EXPECT_EQ(neighbour->tokens(), h_.OneShot({5, 6}, 4));
}

TEST_F(ConstraintTest, EachSequenceHasItsOwn) {
  h_.Start();
  GenerateRequest request = Following({70, 71, 72});
  request.num_sequences = 2;
  const auto a = std::make_shared<CollectingSink>(), b = std::make_shared<CollectingSink>();
  ASSERT_TRUE(h_.engine->Submit(request, {a, b}).ok());
  for (const auto& sink : {a, b}) {
    sink->Wait();
    EXPECT_THAT(sink->tokens(), ElementsAre(70, 71, 72));
  }
}

}  // namespace
}  // namespace skein::engine
