// Requests -> engine: what is taken, what the defaults are, what is refused. tests/python has the
// table of bad fields.

#include "server/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/convert_control.h"
#include "server/convert_conversations.h"
#include "server/status.h"
#include "tests/engine/fake_model.h"

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
  const v1::Version shown = ToProto(version, tokenizer_.get());
  EXPECT_EQ(shown.output(),
            "\xef\xbf\xbd"
            "a");
}

// A few bytes of ids may stand for megabytes, and each byte of a text may be a token.
TEST_F(ConvertTest, NoAnswerIsLargerThanClientsReceive) {
  const engine::WordTokenizer words({std::string(128, ' '), std::string(128, '\xff')});
  model_.tokenizer = &words;
  model_.V = words.vocab_size();
  const auto detokenize = [&](int32_t id, int n) {
    v1::DetokenizeRequest in;
    in.mutable_ids()->Resize(n, id);
    return converter_.Detokenize(in);
  };
  const auto tokenize = [&](size_t bytes) {
    v1::TokenizeRequest in;
    in.set_bytes(std::string(bytes, 'x'));
    return converter_.Tokenize(in);
  };
  // As bytes and as text: 2 * 128 for each id, and 4 * 128 where no byte is UTF-8.
  ASSERT_TRUE(detokenize(257, 16000).ok());
  EXPECT_EQ(detokenize(257, 16000)->text(), std::string(16000 * 128, ' '));
  ASSERT_TRUE(detokenize(258, 8000).ok());
  EXPECT_LE(detokenize(258, 8000)->ByteSizeLong(), kMaxAnswerBytes);
  constexpr char kDetokenize[] =
      "ids: makes an answer of more than 4194304 bytes, which is what clients receive; send it in "
      "pieces";
  for (const auto& [id, n] :
       {std::pair(257, 17000), std::pair(257, 1 << 18), std::pair(258, 8300)}) {
    EXPECT_EQ(detokenize(id, n).status().message(), kDetokenize) << id << " " << n;
    EXPECT_TRUE(absl::IsInvalidArgument(detokenize(id, n).status()));
  }
  // Four bytes for each.
  ASSERT_TRUE(tokenize((1 << 20) - 8).ok());
  EXPECT_LE(tokenize((1 << 20) - 8)->ByteSizeLong(), kMaxAnswerBytes);
  EXPECT_EQ(tokenize(1 << 20).status().message(),
            "bytes: makes an answer of more than 4194304 bytes, which is what clients receive; "
            "send it in pieces");
}

TEST_F(ConvertTest, TokensOfAnUnknownVocabularyHaveNoText) {
  engine::VersionInfo version;
  version.input = {'a' + 1};
  version.output = {'b' + 1, 'c' + 1};
  const v1::Version shown = ToProto(version, nullptr);
  EXPECT_EQ(shown.input() + shown.output(), "");
  EXPECT_THAT(shown.input_token_ids(), ElementsAre('a' + 1));
  EXPECT_THAT(shown.output_token_ids(), ElementsAre('b' + 1, 'c' + 1));
}

TEST_F(ConvertTest, TimesKeepTheirSign) {
  engine::ConversationInfo info;
  info.created = absl::FromUnixNanos(-1500000000);
  const v1::Conversation out = ToProto(info);
  EXPECT_EQ(out.created().seconds(), -2);
  EXPECT_EQ(out.created().nanos(), 500000000);
}

// What the client of a refused request is told.
template <typename T>
std::string Refusal(const absl::StatusOr<T>& command) {
  EXPECT_TRUE(absl::IsInvalidArgument(command.status())) << command.status();
  return std::string(command.status().message());
}
std::string Refusal(const absl::Status& status) {
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
  return std::string(status.message());
}

const std::string kLongId(257, 'x');

TEST(ConvertConversations, ACopyIsOfAConversationAndAPromptStateOfAModel) {
  v1::CreateConversationRequest in;
  in.set_id("new");
  in.mutable_conversation()->set_conversation_id("old");
  in.mutable_conversation()->set_version(0);
  in.mutable_ttl()->set_seconds(2);
  auto command = ToCommand(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->id, "new");
  EXPECT_EQ(command->source, "old");
  EXPECT_EQ(command->version, 0);
  EXPECT_EQ(command->made.ttl, absl::Seconds(2));
  EXPECT_EQ(command->prompt_state, "");

  in.Clear();
  in.set_prompt_state("p");
  in.set_model("m");
  in.mutable_ttl();  // zero: never
  command = ToCommand(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->id, "");
  EXPECT_EQ(command->source, "");
  EXPECT_EQ(command->prompt_state, "p");
  EXPECT_EQ(command->model, "m");
  EXPECT_EQ(command->made.ttl, absl::InfiniteDuration());

  EXPECT_EQ(ToCommand(v1::CreateConversationRequest())->made.ttl, std::nullopt);
}

TEST(ConvertConversations, WhatCreateRefusesIsToldAtOnce) {
  v1::CreateConversationRequest in;
  in.set_id(kLongId);
  in.set_model("m");
  in.mutable_conversation();
  in.mutable_ttl()->set_nanos(-1);
  EXPECT_EQ(Refusal(ToCommand(in)),
            "id: has 257 bytes; at most 256; ttl: must be a duration that is not negative; model: "
            "needs a prompt_state; conversation.conversation_id: is empty");
  in.Clear();
  in.set_prompt_state("");
  EXPECT_EQ(Refusal(ToCommand(in)), "prompt_state: is empty");
}

TEST(ConvertConversations, GetHasPagesOfTheHistory) {
  v1::GetConversationRequest in;
  in.set_id("c");
  auto command = ToCommand(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_FALSE(command->history);
  EXPECT_EQ(command->size, 1000);
  EXPECT_EQ(command->after, 0);
  in.set_view(v1::VIEW_HISTORY);
  in.set_page_size(7);
  in.set_page_token("12");
  command = ToCommand(in);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_TRUE(command->history);
  EXPECT_EQ(command->size, 7);
  EXPECT_EQ(command->after, 12);
  in.set_id("a\tb");
  in.set_view(static_cast<v1::View>(9));
  in.set_page_size(1001);
  for (const char* token : {"-1", "x", "9223372036854775808"}) {
    in.set_page_token(token);
    EXPECT_EQ(Refusal(ToCommand(in)),
              "id: has a control character; view: unknown value; page_size: is 1001, must be in "
              "[1, 1000]; page_token: is not from an answer of Get");
  }
}

TEST(ConvertConversations, ListTakesWhatIsSet) {
  v1::ListConversationsRequest in;
  auto query = ToCommand(in);
  ASSERT_TRUE(query.ok()) << query.status();
  EXPECT_EQ(query->limit, 100);
  EXPECT_EQ(query->busy, std::nullopt);
  EXPECT_EQ(query->used_since, absl::InfinitePast());
  EXPECT_EQ(query->used_before, absl::InfiniteFuture());
  in.set_id_prefix("a");
  in.set_page_token("ab");
  in.set_page_size(3);
  in.set_busy(false);
  in.set_has_state(true);
  in.mutable_used_since()->set_seconds(-62135596800);
  in.mutable_used_before()->set_seconds(253402300799);
  in.mutable_used_before()->set_nanos(999999999);
  query = ToCommand(in);
  ASSERT_TRUE(query.ok()) << query.status();
  EXPECT_EQ(query->prefix, "a");
  EXPECT_EQ(query->after, "ab");
  EXPECT_EQ(query->limit, 3);
  EXPECT_EQ(query->busy, false);
  EXPECT_EQ(query->has_state, true);
  EXPECT_EQ(absl::ToUnixSeconds(query->used_since), -62135596800);
  EXPECT_EQ(absl::ToUnixSeconds(query->used_before), 253402300799);
  in.set_page_size(-1);
  in.set_id_prefix(kLongId);
  in.set_page_token("\x7f");
  in.mutable_used_since()->set_seconds(-62135596801);
  in.mutable_used_before()->set_nanos(1000000000);
  EXPECT_EQ(Refusal(ToCommand(in)),
            "id_prefix: has 257 bytes; at most 256; page_token: has a control character; "
            "page_size: is -1, must be in [1, 1000]; used_since: is no valid time; used_before: is "
            "no valid time");
}

TEST(ConvertConversations, ForkIsWithinItsLimit) {
  LimitsConfig limits;
  limits.forks = 2;
  v1::ForkConversationRequest in;
  in.set_id("c");
  auto command = ToCommand(in, limits);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->count, 1);
  EXPECT_EQ(command->version, std::nullopt);
  in.set_count(2);
  in.set_version(4);
  in.add_new_ids("a");
  in.add_new_ids("b");
  command = ToCommand(in, limits);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->count, 2);
  EXPECT_EQ(command->version, 4);
  EXPECT_THAT(command->new_ids, ElementsAre("a", "b"));
  in.set_count(3);
  in.set_new_ids(1, "");
  EXPECT_EQ(Refusal(ToCommand(in, limits)),
            "count: is 3, must be in [1, 2] (limits.forks); new_ids: has 2 entries, must have none "
            "or 3; new_ids[1]: is empty");
  in.set_count(-1);
  EXPECT_THAT(Refusal(ToCommand(in, limits)), HasSubstr("count: is -1, must be in [1, 2]"));
}

TEST(ConvertConversations, WhatNeedsAnId) {
  EXPECT_EQ(Refusal(Check(v1::DeleteConversationRequest())), "id: is empty");
  EXPECT_EQ(Refusal(Check(v1::RewindConversationRequest())), "id: is empty");
  EXPECT_EQ(Refusal(Check(v1::CancelRequest())), "request_id: is empty");
  EXPECT_EQ(Refusal(Check(v1::UnloadModelRequest())), "name: is empty");
  v1::AttachRequest attach;
  EXPECT_EQ(Refusal(Check(attach)), "request_id: is empty");
  attach.set_request_id("r");
  EXPECT_TRUE(Check(attach).ok());
  attach.set_after_token(-1);
  EXPECT_EQ(Refusal(Check(attach)), "after_token: is negative");
}

TEST(ConvertControl, AModelToLoad) {
  v1::LoadModelRequest in;
  in.set_path("a.safetensors");
  auto source = ToModelSource(in);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ(source->path, "a.safetensors");
  EXPECT_EQ(source->Name(), "a");
  EXPECT_EQ(source->weights, "auto");
  in.set_name("n");
  for (const char* weights : {"auto", "bf16", "fp32", "int8"}) {
    in.set_weights(weights);
    source = ToModelSource(in);
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(source->Name(), "n");
    EXPECT_EQ(source->weights, weights);
  }
  in.set_name(std::string(129, 'n'));
  in.set_weights("int4");
  EXPECT_EQ(Refusal(ToModelSource(in)),
            "name: has 129 bytes; at most 128; weights: must be auto, bf16, fp32, int8 or int8a8");
}

TEST(ConvertControl, ADrainHasATimeOrNone) {
  v1::DrainRequest in;
  EXPECT_EQ(*ToTimeout(in), absl::InfiniteDuration());
  in.mutable_timeout();
  EXPECT_EQ(*ToTimeout(in), absl::ZeroDuration());
  in.mutable_timeout()->set_seconds(366 * 24 * 3600);
  in.mutable_timeout()->set_nanos(1);
  EXPECT_EQ(*ToTimeout(in), absl::Hours(366 * 24) + absl::Nanoseconds(1));
  in.mutable_timeout()->set_seconds(366 * 24 * 3600 + 1);
  EXPECT_EQ(Refusal(ToTimeout(in)), "timeout: must be a duration from 0 to a year");
  in.mutable_timeout()->set_seconds(-1);
  EXPECT_EQ(Refusal(ToTimeout(in)), "timeout: must be a duration from 0 to a year");
}

}  // namespace
}  // namespace skein::server
