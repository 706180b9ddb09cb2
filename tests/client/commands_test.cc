// generate, conversations, tokenize, score and info against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/time/clock.h"
#include "client/errors.h"
#include "tests/client/fake_server.h"
#include "tests/temp_folder.h"

namespace skein::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class CommandsTest : public testing::Test {
 protected:
  Outcome Run(std::vector<std::string> arguments, const std::string& input = "",
              Terminal::Options terminal = {}) {
    arguments.insert(arguments.begin(), {"--server", server_.address()});
    return RunClient(arguments, input, terminal);
  }
  const v1::GenerateRequest& last() { return server_.generation.requests.back(); }
  FakeServer server_;
};

TEST_F(CommandsTest, GenerateTakesItsTextFromAnArgumentAFileOrAPipe) {
  EXPECT_EQ(Run({"generate", "abc"}).out, " You said: abc.\n");
  EXPECT_EQ(Run({"generate"}, "from a pipe\n").out, " You said: from a pipe\n.\n");
  const std::string path = TempFolder() + "/prompt.txt";
  std::ofstream(path) << "from a file";
  EXPECT_EQ(Run({"generate", "--file", path}).out, " You said: from a file.\n");
  EXPECT_EQ(Run({"generate", "--prompt-ids", "1,2,3"}).out, " You said: 3 ids.\n");
  EXPECT_EQ(Run({"generate", "--go-on", "-c", "x"}).out, " You said: nothing.\n");
  EXPECT_EQ(Run({"generate", "--chat", "--system", "s", "hi"}).out, " You said: hi.\n");
  EXPECT_EQ(last().messages().messages(0).content(), "s");
}

TEST_F(CommandsTest, GenerateRefusesWhatIsNoText) {
  EXPECT_EQ(Run({"generate", "--file", "/no/such/file"}).code, kExitNotFound);
  EXPECT_EQ(Run({"generate", "a", "--file", "b"}).code, kExitRefused);
  EXPECT_THAT(Run({"generate", "\xff"}).err, HasSubstr("not UTF-8"));
  EXPECT_THAT(Run({"generate"}, "", {.input_is_terminal = true}).err,
              HasSubstr("there is no text"));
  EXPECT_TRUE(server_.generation.requests.empty());
}

TEST_F(CommandsTest, EveryFlagReachesItsField) {
  const Outcome outcome = Run({"generate",
                               "-t",
                               "0.5",
                               "--top-p",
                               "0.25",
                               "--top-k",
                               "7",
                               "--min-p",
                               "0.125",
                               "--presence-penalty",
                               "1",
                               "--frequency-penalty",
                               "2",
                               "--penalty-decay",
                               "0.75",
                               "--repetition-penalty",
                               "1.5",
                               "--seed",
                               "9",
                               "--logit-bias",
                               "3=-4",
                               "--logit-bias",
                               "5=1",
                               "--ban",
                               "8",
                               "--top-p-before-temperature",
                               "-n",
                               "11",
                               "--min-tokens",
                               "2",
                               "--max-time",
                               "1.5",
                               "--stop",
                               "a\\n",
                               "--stop",
                               "b",
                               "--stop-id",
                               "6",
                               "--ignore-eos",
                               "--logprobs",
                               "--top-logprobs",
                               "4",
                               "-c",
                               "conv",
                               "--create",
                               "--base-version",
                               "0",
                               "--expected-version",
                               "12",
                               "--commit",
                               "never",
                               "--model",
                               "m",
                               "--request-id",
                               "r",
                               "--prompt-state",
                               "greeting",
                               "--prompt-logprobs",
                               "the prompt"});
  ASSERT_EQ(outcome.code, kExitOk) << outcome.err;
  const v1::Sampling& s = last().sampling();
  EXPECT_EQ(s.temperature(), 0.5f);
  EXPECT_EQ(s.top_p(), 0.25f);
  EXPECT_EQ(s.top_k(), 7);
  EXPECT_EQ(s.min_p(), 0.125f);
  EXPECT_EQ(s.presence_penalty(), 1);
  EXPECT_EQ(s.frequency_penalty(), 2);
  EXPECT_EQ(s.penalty_decay(), 0.75f);
  EXPECT_EQ(s.repetition_penalty(), 1.5f);
  EXPECT_EQ(s.seed(), 9);
  EXPECT_EQ(s.logit_bias().at(3), -4);
  EXPECT_EQ(s.logit_bias().at(5), 1);
  EXPECT_THAT(s.banned_token_ids(), ElementsAre(8));
  EXPECT_TRUE(s.top_p_before_temperature());
  const v1::Stopping& stopping = last().stopping();
  EXPECT_EQ(stopping.max_tokens(), 11);
  EXPECT_EQ(stopping.min_tokens(), 2);
  EXPECT_EQ(stopping.max_time().seconds(), 1);
  EXPECT_EQ(stopping.max_time().nanos(), 500'000'000);
  EXPECT_THAT(stopping.stop_strings(), ElementsAre("a\n", "b"));
  EXPECT_THAT(stopping.stop_token_ids(), ElementsAre(6));
  EXPECT_TRUE(stopping.ignore_eos());
  EXPECT_TRUE(last().output().logprobs());
  EXPECT_EQ(last().output().top_logprobs(), 4);
  EXPECT_EQ(last().conversation_id(), "conv");
  EXPECT_TRUE(last().create_if_missing());
  EXPECT_TRUE(last().has_base_version());
  EXPECT_EQ(last().base_version(), 0);
  EXPECT_EQ(last().expected_version(), 12);
  EXPECT_EQ(last().commit(), v1::COMMIT_MODE_NEVER);
  EXPECT_EQ(last().model(), "m");
  EXPECT_EQ(last().request_id(), "r");
  EXPECT_EQ(last().text().text(), "the prompt");
  EXPECT_EQ(last().prompt_state(), "greeting");
  EXPECT_TRUE(last().output().prompt_logprobs());
  EXPECT_FALSE(last().has_num_sequences());
  EXPECT_FALSE(last().has_thinking());
}

TEST_F(CommandsTest, GenerateShowsThePromptsTokensFirst) {
  EXPECT_EQ(Run({"generate", "--prompt-logprobs", "x"}).out,
            "     3  \"x\"  -1.5000\n You said: x.\n");
}

TEST_F(CommandsTest, WhatIsThoughtIsShownOnATerminalOnly) {
  const std::vector<std::string> command = {"generate", "--chat", "--thinking", "on", "x"};
  EXPECT_EQ(Run(command).out, " You said: x.\n");
  EXPECT_EQ(last().thinking(), "on");
  Terminal::Options terminal = {.input_is_terminal = true, .output_is_terminal = true};
  EXPECT_THAT(Run(command, "", terminal).out, StartsWith(" Hm.\n You said: x.\n"));
  terminal.color = true;
  EXPECT_THAT(Run(command, "", terminal).out, HasSubstr("\033[2m Hm.\033[0m\n You said: x."));
  EXPECT_THAT(Run({"generate", "--chat", "--thinking", "on", "--json", "x"}).out,
              HasSubstr("\"reasoning\":\" Hm.\""));
  EXPECT_NE(Run({"generate", "--thinking", "on", "x"}).code, kExitOk) << "it needs --chat";
  EXPECT_NE(Run({"generate", "--chat", "--thinking", "much", "x"}).code, kExitOk);
}

TEST_F(CommandsTest, EachOfSeveralSequencesIsPrintedWhole) {
  const Outcome outcome = Run({"generate", "--num-sequences", "3", "--stats", "x"});
  EXPECT_EQ(outcome.code, kExitOk);
  EXPECT_EQ(last().num_sequences(), 3);
  EXPECT_EQ(outcome.out,
            "--- 2: seed 42, stop, conversation copy-2 version 3\nx2 again2\n"
            "--- 1: seed 41, error: it failed\nx1 again1\n"
            "--- 0: seed 40, stop, conversation copy-0 version 3\nx0 again0\n");
  EXPECT_EQ(outcome.err, "2: 0 tokens\n1: 0 tokens\n0: 0 tokens\n");
  EXPECT_THAT(Run({"generate", "--num-sequences", "3", "--json", "x"}).out,
              HasSubstr("{\"delta\":{\"index\":2,\"text\":\"x2\""));
  EXPECT_NE(Run({"generate", "--num-sequences", "0", "x"}).code, kExitOk);
}

TEST_F(CommandsTest, GenerateShowsTokens) {
  EXPECT_THAT(Run({"generate", "--logprobs", "x"}).out,
              HasSubstr("     7  \" said: \"  -0.5000\n"));
  EXPECT_THAT(Run({"generate", "--stats", "x"}).err, HasSubstr("3 tokens, 20.0 tokens/s"));
  EXPECT_THAT(Run({"generate", "--json", "x"}).out,
              HasSubstr("{\"delta\":{\"index\":0,\"text\":\" You\""));
}

TEST_F(CommandsTest, CtrlCEndsGenerateWithItsOwnCode) {
  const Outcome outcome = Run({"generate", "slow"});
  EXPECT_EQ(outcome.code, kExitInterrupted);
  EXPECT_EQ(outcome.out, " You said: slow.\n");
  EXPECT_THAT(server_.generation.cancelled, ElementsAre(last().request_id()));
}

TEST_F(CommandsTest, Conversations) {
  EXPECT_THAT(Run({"conversations", "create", "a"}).out, StartsWith("a: version 0"));
  EXPECT_EQ(Run({"generate", "-c", "a", "hello"}).code, kExitOk);
  EXPECT_THAT(Run({"conversations", "fork", "a", "--new-id", "b", "--new-id", "c"}).out,
              HasSubstr("\nc: version 1"));
  const std::string list = Run({"conversations", "list"}).out;
  EXPECT_THAT(list, HasSubstr("a: version 1"));
  EXPECT_THAT(list, HasSubstr("b: version 1"));
  EXPECT_THAT(list, HasSubstr("c: version 1"));
  EXPECT_THAT(Run({"conversations", "list", "b"}).out, StartsWith("b: "));
  EXPECT_THAT(Run({"conversations", "history", "b"}).out,
              HasSubstr("User: hello\n\nAssistant: You said: hello.\n"));
  EXPECT_THAT(Run({"conversations", "get", "b", "--json"}).out,
              StartsWith("{\"id\":\"b\",\"head_version\":\"1\""));
  EXPECT_THAT(Run({"conversations", "rewind", "b", "0"}).out, StartsWith("b: version 0"));
  EXPECT_EQ(Run({"conversations", "delete", "b", "c"}).out, "deleted b\ndeleted c\n");
  EXPECT_EQ(Run({"conversations", "get", "b"}).code, kExitNotFound);
}

TEST_F(CommandsTest, FiltersOfTheListReachTheirFields) {
  const v1::ListConversationsRequest& listed = server_.conversations.listed;
  Run({"conversations", "list"});
  EXPECT_FALSE(listed.has_busy() || listed.has_has_state() || listed.has_used_since() ||
               listed.has_used_before());
  Run({"conversations", "list", "a", "--busy", "--with-state", "--used-since",
       "2026-01-31T18:00:00.5Z", "--used-before", "90m"});
  EXPECT_EQ(listed.id_prefix(), "a");
  EXPECT_TRUE(listed.busy());
  EXPECT_TRUE(listed.has_state());
  EXPECT_EQ(listed.used_since().seconds(), 1769882400);
  EXPECT_EQ(listed.used_since().nanos(), 500000000);
  const int64_t ago = absl::ToUnixSeconds(absl::Now()) - listed.used_before().seconds();
  EXPECT_GE(ago, 5400);
  EXPECT_LT(ago, 5400 + 600);
  Run({"conversations", "list", "--idle", "--without-state", "--used-since", "2026-01-31"});
  EXPECT_TRUE(listed.has_busy() && !listed.busy());
  EXPECT_TRUE(listed.has_has_state() && !listed.has_state());
  EXPECT_TRUE(listed.has_used_since());
  EXPECT_NE(Run({"conversations", "list", "--idle", "--busy"}).code, kExitOk);
  EXPECT_THAT(Run({"conversations", "list", "--used-since", "soon"}).err, HasSubstr("is no time"));
}

TEST_F(CommandsTest, CreateWithAPromptState) {
  Run({"conversations", "create", "a", "--prompt-state", "greeting", "--model", "m"});
  EXPECT_EQ(server_.conversations.created.prompt_state(), "greeting");
  EXPECT_EQ(server_.conversations.created.model(), "m");
  EXPECT_NE(Run({"conversations", "create", "--model", "m"}).code, kExitOk);
  EXPECT_THAT(Run({"info"}).out, HasSubstr("prompt state       greeting, 12 tokens\n"));
}

TEST_F(CommandsTest, TokenizeByServerAndOffline) {
  EXPECT_EQ(Run({"tokenize", "a\nb"}).out, "    42  \"a\\nb\"\n");
  EXPECT_EQ(Run({"tokenize", "--chat", "hi"}).out, "    42  \"User: hi\"\n");
  EXPECT_EQ(Run({"tokenize", "--decode", "1,2"}).out, "<1><2>");
  EXPECT_EQ(RunClient({"tokenize", "--vocabulary", "bytes", "--ids", "h\xff"}).out, "105,256\n");
  EXPECT_EQ(RunClient({"tokenize", "--vocabulary", "bytes", "\xC3\xA9"}).out,
            "   196  \"\\xc3\"\n   170  \"\\xa9\"\n");
  EXPECT_EQ(RunClient({"tokenize", "--vocabulary", "bytes", "--decode", "105,106"}).out, "hi");
  EXPECT_THAT(RunClient({"tokenize", "--vocabulary", "bytes", "--decode", "300"}).err,
              HasSubstr("300 stands for nothing"));
  EXPECT_EQ(RunClient({"tokenize", "--vocabulary", "/no/such/file", "x"}).code, kExitNotFound);
}

TEST_F(CommandsTest, Score) {
  const std::string out = Run({"score", "-p", "2+2=", "four", "five"}).out;
  EXPECT_THAT(out,
              HasSubstr("-2.0000  1 tokens, perplexity 7.389, 0.721 bits per byte  \"four\"\n"));
  EXPECT_THAT(out, HasSubstr("\"five\"\n"));
  EXPECT_THAT(Run({"score", "--tokens"}, "piped").out, HasSubstr("     5  \"piped\"  -2.0000\n"));
}

TEST_F(CommandsTest, Info) {
  const std::string out = Run({"info"}).out;
  EXPECT_THAT(out, HasSubstr("skeind 9.9.9 on " + server_.address()));
  EXPECT_THAT(out, HasSubstr("model parrot: RWKV-7, 0 layers"));
  EXPECT_EQ(RunClient({"info", server_.address()}).out, out);
  EXPECT_THAT(Run({"info", "--json"}).out, HasSubstr("\"name\":\"parrot\""));
  EXPECT_EQ(Run({"info", "/no/such/file.pth"}).code, kExitNotFound);
  const std::string path = TempFolder() + "/not_a_model";
  std::ofstream(path) << "hello";
  EXPECT_EQ(Run({"info", path}).code, kExitRefused);
}

}  // namespace
}  // namespace skein::client
