// generate, conversations, tokenize, score and info against a fake server.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "client/errors.h"
#include "tests/client/fake_server.h"

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
  const std::string path = testing::TempDir() + "/prompt.txt";
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
  const std::string path = testing::TempDir() + "/not_a_model";
  std::ofstream(path) << "hello";
  EXPECT_EQ(Run({"info", path}).code, kExitRefused);
}

}  // namespace
}  // namespace skein::client
