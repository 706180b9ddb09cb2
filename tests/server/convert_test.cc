// Requests -> engine: what is taken, what the defaults are, what is refused. tests/python has the
// table of bad fields.

#include "server/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/status.h"

namespace skein::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ConvertTest : public ::testing::Test {
 protected:
  ConvertTest()
      : tokenizer_(engine::NewByteTokenizer()),
        chat_(*engine::ChatTemplate::Create("rwkv", {})),
        model_{"tiny", tokenizer_.get(), &chat_, 257},
        converter_(config_, model_) {}

  v1::GenerateRequest Request() {
    v1::GenerateRequest request;
    request.mutable_text()->set_text("hi");
    return request;
  }

  ServerConfig config_;
  std::unique_ptr<engine::Tokenizer> tokenizer_;
  engine::ChatTemplate chat_;
  ServedModel model_;
  Converter converter_;
};

TEST_F(ConvertTest, UnsetFieldsMeanTheDefaultsOfTheConfig) {
  config_.defaults.temperature = 0.25;
  config_.defaults.max_tokens = 33;
  const auto command = converter_.ToEngine(Request());
  ASSERT_TRUE(command.ok()) << command.status();
  const engine::GenerateRequest& r = command->request;
  EXPECT_EQ(r.sampling.temperature, 0.25f);
  EXPECT_EQ(r.stopping.max_tokens, 33);
  EXPECT_EQ(r.stopping.max_time, absl::InfiniteDuration());
  EXPECT_FALSE(r.sampling.seed.has_value());
  EXPECT_EQ(r.commit, engine::CommitMode::kOnSuccess);
  EXPECT_THAT(r.input, ElementsAre('h' + 1, 'i' + 1));
  EXPECT_TRUE(r.separator.empty());
  EXPECT_TRUE(command->output.text);
  EXPECT_FALSE(command->output.tokens);
}

TEST_F(ConvertTest, EveryFieldReachesTheEngine) {
  v1::GenerateRequest in = Request();
  in.set_request_id("r");
  in.set_conversation_id("c");
  in.set_create_if_missing(true);
  in.set_base_version(4);
  in.set_expected_version(5);
  in.set_commit(v1::COMMIT_MODE_KEEP_PARTIAL);
  auto* s = in.mutable_sampling();
  s->set_temperature(0);
  s->set_top_p(0.5);
  s->set_top_k(3);
  s->set_min_p(0.125);
  s->set_presence_penalty(1);
  s->set_frequency_penalty(2);
  s->set_penalty_decay(0.5);
  s->set_repetition_penalty(1.5);
  s->set_seed(UINT64_MAX);
  (*s->mutable_logit_bias())[7] = -2;
  s->add_banned_token_ids(9);
  s->set_top_p_before_temperature(true);
  auto* t = in.mutable_stopping();
  t->set_max_tokens(10);
  t->set_min_tokens(2);
  t->mutable_max_time()->set_seconds(1);
  t->mutable_max_time()->set_nanos(500000000);
  t->add_stop_strings("end");
  t->add_stop_token_ids(11);
  t->set_ignore_eos(true);
  in.mutable_output()->set_top_logprobs(4);
  in.mutable_output()->set_text(false);

  const auto command = converter_.ToEngine(in);
  ASSERT_TRUE(command.ok()) << command.status();
  const engine::GenerateRequest& r = command->request;
  EXPECT_EQ(r.request_id, "r");
  EXPECT_EQ(r.conversation_id, "c");
  EXPECT_TRUE(r.create_if_missing);
  EXPECT_EQ(r.base_version, 4);
  EXPECT_EQ(r.expected_version, 5);
  EXPECT_EQ(r.commit, engine::CommitMode::kKeepPartial);
  EXPECT_EQ(r.sampling.temperature, 0);
  EXPECT_EQ(r.sampling.top_p, 0.5f);
  EXPECT_EQ(r.sampling.top_k, 3);
  EXPECT_EQ(r.sampling.min_p, 0.125f);
  EXPECT_EQ(r.sampling.presence_penalty, 1);
  EXPECT_EQ(r.sampling.frequency_penalty, 2);
  EXPECT_EQ(r.sampling.penalty_decay, 0.5f);
  EXPECT_EQ(r.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(r.sampling.seed, UINT64_MAX);
  ASSERT_EQ(r.sampling.logit_bias.size(), 1u);
  EXPECT_EQ(r.sampling.logit_bias[0].token, 7);
  EXPECT_EQ(r.sampling.logit_bias[0].value, -2);
  EXPECT_THAT(r.sampling.banned_tokens, ElementsAre(9));
  EXPECT_TRUE(r.sampling.top_p_before_temperature);
  EXPECT_EQ(r.stopping.max_tokens, 10);
  EXPECT_EQ(r.stopping.min_tokens, 2);
  EXPECT_EQ(r.stopping.max_time, absl::Milliseconds(1500));
  EXPECT_THAT(r.stopping.stop_strings, ElementsAre("end"));
  EXPECT_THAT(r.stopping.stop_tokens, ElementsAre(11));
  EXPECT_TRUE(r.stopping.ignore_eos);
  EXPECT_TRUE(r.want_logprobs);
  EXPECT_EQ(r.top_logprobs, 4);
  EXPECT_FALSE(command->output.text);
  EXPECT_TRUE(command->output.tokens && command->output.logprobs);
}

TEST_F(ConvertTest, MessagesBringTemplateSeparatorAndStops) {
  v1::GenerateRequest in;
  auto* message = in.mutable_messages()->add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hi");
  in.mutable_stopping()->add_stop_strings("mine");
  const auto command = converter_.ToEngine(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(tokenizer_->Decode(command->request.input), "User: hi\n\nAssistant:");
  EXPECT_EQ(tokenizer_->Decode(command->request.separator), "\n\n");
  EXPECT_EQ(command->request.stopping.stop_strings.front(), "mine");
  EXPECT_EQ(command->request.stopping.stop_strings.size(), 1 + chat_.stops().size());
}

TEST_F(ConvertTest, ThinkingBelongsToMessages) {
  v1::GenerateRequest in;
  auto* message = in.mutable_messages()->add_messages();
  message->set_role(v1::ROLE_TOOL);
  message->set_content("{}");
  in.set_thinking("on");
  auto command = converter_.ToEngine(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(tokenizer_->Decode(command->request.input),
            "User: Function output:\n{}\n\nAssistant: <think");
  EXPECT_EQ(command->output.thinking, engine::Thinking::kOn);
  in.set_thinking("short");  // there is no user's message to write it behind
  EXPECT_TRUE(absl::IsInvalidArgument(converter_.ToEngine(in).status()));
  in.set_thinking("much");
  EXPECT_TRUE(absl::IsInvalidArgument(converter_.ToEngine(in).status()));
  in = Request();
  in.set_thinking("on");
  EXPECT_TRUE(absl::IsInvalidArgument(converter_.ToEngine(in).status()));
  v1::ScoreRequest score;
  score.set_thinking("fast");
  score.add_continuations()->mutable_text()->set_text("x");
  message = score.mutable_messages()->add_messages();
  message->set_role(v1::ROLE_USER);
  message->set_content("hi");
  const auto scored = converter_.ToEngine(score);
  ASSERT_TRUE(scored.ok()) << scored.status();
  EXPECT_EQ(tokenizer_->Decode(scored->prototype.prompt),
            "User: hi\n\nAssistant: <think>\n</think");
}

TEST_F(ConvertTest, WhatTheEngineIsAskedForBeyondOneAnswer) {
  v1::GenerateRequest in = Request();
  in.set_num_sequences(16);
  in.mutable_output()->set_prompt_logprobs(true);
  in.mutable_sampling()->set_penalty_scope(v1::PENALTY_SCOPE_CONVERSATION);
  const auto command = converter_.ToEngine(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->request.num_sequences, 16);
  EXPECT_TRUE(command->request.want_prompt_logprobs);
  EXPECT_EQ(command->request.sampling.penalty_scope, engine::PenaltyScope::kConversation);
  in.set_num_sequences(17);
  EXPECT_TRUE(absl::IsInvalidArgument(converter_.ToEngine(in).status()));
}

TEST_F(ConvertTest, LimitsAreThoseOfTheConfig) {
  config_.limits.prompt_tokens = 2;
  EXPECT_TRUE(converter_.ToEngine(Request()).ok());
  config_.limits.prompt_tokens = 1;
  const absl::Status status = converter_.ToEngine(Request()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(base::Reason(status), "PROMPT_TOO_LONG");
  EXPECT_THAT(std::string(status.message()), HasSubstr("limits.prompt_tokens"));
}

TEST_F(ConvertTest, FieldsThatAreNotBuiltWinOverBadOnes) {
  v1::GenerateRequest in = Request();
  in.mutable_constraint()->set_regex("a");
  in.mutable_sampling()->set_temperature(-1);
  EXPECT_TRUE(absl::IsUnimplemented(converter_.ToEngine(in).status()));
}

TEST_F(ConvertTest, TextThatIsNotUtf8ComesAsReplacementCharacters) {
  engine::VersionInfo version;
  version.output = {0xFF + 1, 'a' + 1};
  EXPECT_EQ(converter_.ToProto(version).output(),
            "\xef\xbf\xbd"
            "a");
}

TEST_F(ConvertTest, TimesKeepTheirSign) {
  engine::ConversationInfo info;
  info.created = absl::FromUnixNanos(-1500000000);
  const v1::Conversation out = ToProto(info);
  EXPECT_EQ(out.created().seconds(), -2);
  EXPECT_EQ(out.created().nanos(), 500000000);
}

}  // namespace
}  // namespace skein::server
