// `skein chat` against a fake server, in a pipe and on a terminal.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_split.h"
#include "client/errors.h"
#include "tests/client/fake_server.h"

namespace skein::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr Terminal::Options kTerminal = {
    .input_is_terminal = true, .output_is_terminal = true, .color = false};

class ChatTest : public testing::Test {
 protected:
  Outcome Chat(const std::string& input, std::vector<std::string> flags = {},
               Terminal::Options terminal = {}) {
    flags.insert(flags.begin(), {"chat", "--server", server_.address()});
    return RunClient(flags, input, terminal);
  }
  const v1::GenerateRequest& request(int i) { return server_.generation.requests.at(i); }
  FakeServer server_;
};

TEST_F(ChatTest, InAPipeTheOutputIsTheAnswers) {
  const Outcome outcome = Chat("hello\n\nbye\n");
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_EQ(outcome.out, "You said: hello.\nYou said: bye.\n");
  EXPECT_THAT(outcome.err,
              HasSubstr("skein chat --server " + server_.address() + " --conversation made-1"));
  ASSERT_THAT(server_.generation.requests, SizeIs(2));
  EXPECT_EQ(request(1).conversation_id(), "made-1");
  EXPECT_EQ(request(1).messages().messages(0).role(), v1::ROLE_USER);
  EXPECT_FALSE(request(1).has_sampling());  // the server's defaults
}

TEST_F(ChatTest, OnATerminalItSaysWhatTheModelCanDo) {
  const Outcome outcome = Chat("hello\n/quit\nnot read\n", {}, kTerminal);
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_THAT(outcome.out,
              HasSubstr("Repeats what you say.\nTry:\n  My name is Talor.\n  What is my name?\n"));
  EXPECT_THAT(outcome.out,
              HasSubstr("> You said: hello.\n3 tokens, 20.0 tokens/s, first after 23 ms\n"));
  EXPECT_THAT(outcome.out, HasSubstr("--conversation made-1\n"));
  EXPECT_THAT(outcome.out, Not(HasSubstr("\033")));
}

TEST_F(ChatTest, ControlCharactersOfTheModelAreShownNotObeyed) {
  const Outcome outcome = Chat("a\033[2Jb\xC2\x9B\x07\n", {}, kTerminal);
  EXPECT_THAT(outcome.out, HasSubstr("You said: a^[[2Jb\xEF\xBF\xBD^G."));
  EXPECT_EQ(Chat("a\033b\n").out, "You said: a\033b.\n");  // a pipe gets the bytes
}

TEST_F(ChatTest, ContinuesAConversation) {
  Chat("hello\n");
  const Outcome outcome = Chat("again\n", {"--conversation", "made-1"}, kTerminal);
  EXPECT_THAT(outcome.out, HasSubstr("Continuing made-1: version 1"));
  EXPECT_THAT(outcome.out, HasSubstr("> hello\nYou said: hello.\n"));
  EXPECT_EQ(request(1).conversation_id(), "made-1");
}

TEST_F(ChatTest, AnUnknownConversationIsAnErrorUnlessAsked) {
  const Outcome outcome = Chat("hello\n", {"--conversation", "typo"});
  EXPECT_EQ(outcome.code, kExitNotFound);
  EXPECT_THAT(
      outcome.err,
      HasSubstr("error: NOT_FOUND: there is no conversation 'typo' (CONVERSATION_NOT_FOUND)"));
  EXPECT_THAT(server_.generation.requests, IsEmpty());
  EXPECT_EQ(Chat("hello\n", {"--conversation", "typo", "--create"}).code, kExitOk);
  EXPECT_TRUE(request(0).create_if_missing());
}

TEST_F(ChatTest, APromptStateBeginsAConversation) {
  Chat("a\nb\n/rewind 0\nc\n/new\nd\n", {"--prompt-state", "greeting"});
  EXPECT_EQ(request(0).prompt_state(), "greeting");
  EXPECT_EQ(request(1).prompt_state(), "");
  EXPECT_EQ(request(2).prompt_state(), "greeting");
  EXPECT_EQ(request(3).prompt_state(), "greeting");
}

TEST_F(ChatTest, WhatIsThoughtComesBeforeTheAnswer) {
  EXPECT_EQ(Chat("a\n", {"--thinking", "on"}).out, "You said: a.\n");
  EXPECT_EQ(request(0).thinking(), "on");
  EXPECT_THAT(Chat("a\n", {"--thinking", "on"}, kTerminal).out, HasSubstr(" Hm.\nYou said: a.\n"));
}

TEST_F(ChatTest, ASystemMessageIsSaidOnce) {
  Chat("a\nb\n", {"--system", "Be brief."});
  ASSERT_EQ(request(0).messages().messages_size(), 2);
  EXPECT_EQ(request(0).messages().messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(request(0).messages().messages(0).content(), "Be brief.");
  EXPECT_EQ(request(1).messages().messages_size(), 1);
  Chat("c\n/rewind 0\nd\n/new\ne\n",
       {"--system", "Be brief."});  // and again where a conversation begins
  for (const int i : {2, 3, 4}) EXPECT_EQ(request(i).messages().messages_size(), 2) << i;
}

TEST_F(ChatTest, AFailedFirstTurnLeavesNothingBehind) {
  server_.generation.refusal = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
  const Outcome outcome = Chat("a\nb\n", {"--system", "Be brief."}, kTerminal);
  ASSERT_THAT(server_.generation.requests, SizeIs(2));
  EXPECT_EQ(request(1).messages().messages_size(), 2);  // the system message is still to be said
  EXPECT_EQ(request(1).conversation_id(), request(0).conversation_id());
  EXPECT_THAT(server_.conversations.kept, IsEmpty());
  EXPECT_THAT(outcome.out, Not(HasSubstr("Continue it")));
}

TEST_F(ChatTest, CtrlCCancelsTheAnswerAndKeepsTheChat) {
  const Outcome outcome = Chat("slow\nhello\n", {}, kTerminal);
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_THAT(server_.generation.cancelled, ElementsAre(request(0).request_id()));
  EXPECT_THAT(
      outcome.out,
      HasSubstr("You said: slow.\n3 tokens, 20.0 tokens/s, first after 23 ms, cancelled\n"));
  EXPECT_THAT(outcome.out, HasSubstr("You said: hello.\n"));
  EXPECT_EQ(request(0).commit(), v1::COMMIT_MODE_KEEP_PARTIAL);
}

TEST_F(ChatTest, CtrlCAtThePromptEndsTheChat) {
  server_.info.interrupt = true;
  const Outcome outcome =
      RunClient({"chat", "--server", server_.address()}, "", kTerminal, /*keep_open=*/true);
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_THAT(server_.generation.requests, IsEmpty());
}

TEST_F(ChatTest, RegenerateBranchesFromTheParent) {
  const Outcome outcome =
      Chat("one\ntwo\n/regenerate\n/versions\n", {"--seed", "5", "--stop", "END\\n"});
  ASSERT_THAT(server_.generation.requests, SizeIs(3)) << outcome.err;
  EXPECT_EQ(request(1).sampling().seed(), 5);
  EXPECT_EQ(request(2).base_version(), 1);
  EXPECT_THAT(request(2).token_ids().ids(), ElementsAre(100, 101, 102, 103));
  EXPECT_THAT(request(2).stopping().stop_strings(), ElementsAre("END\n", "\n\nUser"));
  EXPECT_FALSE(request(2).sampling().has_seed());
  EXPECT_THAT(outcome.out, HasSubstr("*    3 <- 1"));
  EXPECT_THAT(outcome.out, HasSubstr("two -> You said: two."));
}

TEST_F(ChatTest, ForkRewindMoreAndNew) {
  const Outcome outcome =
      Chat("one\ntwo\n/fork\nthree\n/rewind\n/rewind 0\n/more\n/new\nfour\n/stats\n");
  EXPECT_EQ(outcome.code, kExitOk) << outcome.err;
  EXPECT_EQ(request(2).conversation_id(), "made-2");
  EXPECT_THAT(outcome.out, HasSubstr("Now in the copy made-2; made-1 stays as it was."));
  EXPECT_THAT(outcome.out, HasSubstr("Back at version 2,"));
  EXPECT_THAT(outcome.out, HasSubstr("Back at version 0,"));
  EXPECT_FALSE(request(3).has_messages());
  EXPECT_THAT(outcome.out, HasSubstr("You said: nothing."));
  EXPECT_EQ(request(4).conversation_id(), "made-3");
  EXPECT_THAT(outcome.out, HasSubstr("server: skeind 9.9.9"));
  EXPECT_THAT(outcome.out, HasSubstr("this chat: 5 answers, 15 tokens"));
}

TEST_F(ChatTest, DemoPlaysTheExamplesInAConversationOfItsOwn) {
  const Outcome outcome = Chat("/demo\n", {}, kTerminal);
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_THAT(outcome.out, HasSubstr("> My name is Talor.\nYou said: My name is Talor..\n"));
  EXPECT_THAT(outcome.out, HasSubstr("> What is my name?\nYou said: What is my name?.\n"));
  EXPECT_THAT(server_.conversations.kept, IsEmpty());
  EXPECT_THAT(outcome.out, Not(HasSubstr("--conversation")));
}

TEST_F(ChatTest, WrongCommandsSayWhatIsThere) {
  const auto error = [&](const std::string& line) {
    const Outcome outcome = Chat(line + "\n");
    EXPECT_EQ(outcome.code, kExitRefused) << line;
    return outcome.err;
  };
  EXPECT_THAT(error("/regenrate"),
              HasSubstr("there is no command /regenrate; did you mean /regenerate?"));
  EXPECT_THAT(error("/rewind x"), HasSubstr("/rewind takes a version"));
  EXPECT_THAT(error("/demo 1"), HasSubstr("/demo takes nothing"));
  EXPECT_THAT(error("/regenerate"), HasSubstr("nothing was said yet"));
  EXPECT_THAT(Chat("/help\n").out, HasSubstr("/regenerate"));
}

TEST_F(ChatTest, SlashesAndLongMessages) {
  const Outcome outcome = Chat("//etc\none\\\ntwo\n");
  EXPECT_EQ(outcome.out, "You said: /etc.\nYou said: one\ntwo.\n");
  EXPECT_EQ(Chat("\xff\n").code, kExitRefused);
}

TEST_F(ChatTest, WithoutATemplateTextIsContinuedAndThatIsSaid) {
  server_.info.model.set_chat_template("none");
  const Outcome outcome = Chat("Once upon\n");
  EXPECT_EQ(outcome.out, " You said: Once upon.\n");
  EXPECT_THAT(outcome.err, HasSubstr("This model has no chat template"));
  EXPECT_EQ(request(0).text().text(), "Once upon");
  EXPECT_EQ(Chat("x\n", {"--system", "y"}).code, kExitRefused);
}

TEST_F(ChatTest, AnErrorEndsAPipeButNotATerminal) {
  server_.generation.refusal = grpc::Status(grpc::StatusCode::INTERNAL, "broken");
  const Outcome pipe = Chat("a\nb\n");
  EXPECT_EQ(pipe.code, kExitFailed);
  EXPECT_THAT(server_.generation.requests, SizeIs(1));
  EXPECT_THAT(pipe.err, HasSubstr("error: INTERNAL: broken"));
  const Outcome terminal = Chat("a\nb\n", {}, kTerminal);
  EXPECT_EQ(terminal.code, kExitOk);
  EXPECT_THAT(server_.generation.requests, SizeIs(3));
}

TEST_F(ChatTest, JsonIsOneMessageALine) {
  const Outcome outcome = Chat("hi\n", {"--json"});
  EXPECT_THAT(outcome.out, HasSubstr("{\"started\":{\"request_id\":\"skein-"));
  EXPECT_THAT(outcome.out, HasSubstr("\"reason\":\"FINISH_REASON_STOP\""));
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 5);
  const std::string on_terminal = Chat("hi\n", {"--json"}, kTerminal).out;  // no prompts in it
  for (const absl::string_view line : absl::StrSplit(on_terminal, '\n', absl::SkipEmpty())) {
    EXPECT_EQ(line.front(), '{') << line;
  }
}

}  // namespace
}  // namespace skein::client
