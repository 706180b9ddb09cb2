// Stop strings, stop ids, min_tokens: what is shown, what is committed, and that the state carries
// no trace.

#include <gmock/gmock.h>

#include "tests/engine/engine_harness.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// The model writes `text` after the prompt, in the tokenizer's tokens, then end-of-document for
// ever.
struct Scripted {
  Scripted(const std::vector<std::string>& words, const std::vector<std::string>& pieces)
      : h(words) {
    for (const std::string& piece : pieces) {
      const std::vector<int32_t> ids = h.tokenizer.Encode(piece);
      SKEIN_CHECK(ids.size() == 1);
      tokens.push_back(ids[0]);
    }
    h.model.script = [this](int64_t consumed) {
      const int64_t i = consumed - prompt;
      return i < 0 ? -1 : i < static_cast<int64_t>(tokens.size()) ? tokens[i] : 0;
    };
    h.Start();
  }
  std::shared_ptr<CollectingSink> Run(std::vector<std::string> stops, int32_t max_tokens = 100) {
    GenerateRequest request = h.Request({250, 251, 252}, "c");
    request.stopping.stop_strings = std::move(stops);
    request.stopping.max_tokens = max_tokens;
    request.stopping.ignore_eos = false;
    return h.Run(request);
  }
  // The conversation reads as this, and goes on exactly as its tokens say.
  void ExpectConversation(const std::string& output) {
    EXPECT_EQ(h.tokenizer.Decode((*h.engine->conversations().History({"", "c"}))[0].output),
              output);
    h.model.script = nullptr;
    h.ExpectExact("c");
    h.Run(h.Request({100}, "c"));
    h.ExpectExact("c");
  }
  int64_t prompt = 3;
  std::vector<int32_t> tokens;
  Harness h;
};

TEST(Stop, EndOfDocumentLeavesNoTrace) {
  Scripted s({}, {"a", "b", "c"});
  const auto sink = s.Run({});
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_token, 0);
  EXPECT_EQ(sink->text, "abc");
  s.ExpectConversation("abc");
}

TEST(Stop, StopIdLeavesNoTrace) {
  Scripted s({}, {"a", "b", "c"});
  GenerateRequest request = s.h.Request({250, 251, 252}, "c");
  request.stopping.stop_tokens = {s.tokens[2]};
  const auto sink = s.h.Run(request);
  EXPECT_EQ(sink->finished->stop_token, s.tokens[2]);
  EXPECT_EQ(sink->text, "ab");
  s.ExpectConversation("ab");
}

TEST(Stop, FirstSampledTokenStops) {
  Scripted s({}, {});
  const auto sink = s.Run({});
  EXPECT_THAT(sink->events, IsEmpty());
  EXPECT_EQ(sink->finished->usage.completion_tokens, 0);
  s.ExpectConversation("");
}

TEST(Stop, StringAcrossTokens) {
  Scripted s({}, {"h", "i", "\n", "\n", "U", "s", "x"});
  const auto sink = s.Run({"\n\nUs"});
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_match, "\n\nUs");
  EXPECT_EQ(sink->text, "hi");
  EXPECT_EQ(sink->finished->usage.completion_tokens, 2);
  s.ExpectConversation("hi");
}

TEST(Stop, StringBeginsAndEndsInsideTokens) {
  Scripted s({"hello\n", "\nUser:"}, {"a", "hello\n", "\nUser:"});
  const auto sink = s.Run({"\n\nUser"});
  EXPECT_EQ(sink->text, "ahello");
  EXPECT_EQ(s.h.tokenizer.Decode(sink->tokens()), "ahello");
  EXPECT_EQ(sink->tokens().size(), 6u);  // "hello" in bytes: no such word
  s.ExpectConversation("ahello");
}

TEST(Stop, StringInsideOneToken) {
  Scripted s({"aSTOPb"}, {"x", "y", "aSTOPb", "z"});
  const auto sink = s.Run({"STOP"});
  EXPECT_EQ(sink->text, "xya");
  EXPECT_TRUE(std::isnan(sink->events.back().logprob));
  s.ExpectConversation("xya");
}

TEST(Stop, OneTokenIsTheString) {
  Scripted s({"STOP"}, {"x", "STOP"});
  EXPECT_EQ(s.Run({"STOP"})->text, "x");
  s.ExpectConversation("x");
}

TEST(Stop, FirstTokenIsTheString) {
  Scripted s({"STOP"}, {"STOP"});
  EXPECT_EQ(s.Run({"STOP"})->text, "");
  s.ExpectConversation("");
}

TEST(Stop, PartialMatchIsHeldBackThenReleased) {
  Scripted s({}, {"a", "\n", "\n", "V", "b", "\n"});
  const auto sink = s.Run({"\n\nUser"});
  EXPECT_EQ(sink->finished->reason, FinishReason::kStop);
  EXPECT_EQ(sink->finished->stop_match, "");
  EXPECT_EQ(sink->text, "a\n\nVb\n");  // the last newline was still held when the document ended
  s.ExpectConversation("a\n\nVb\n");
}

TEST(Stop, OverlappingBeginnings) {
  // "aab" begins again inside its own partial match.
  Scripted s({}, {"x", "a", "a", "a", "b", "y"});
  EXPECT_EQ(s.Run({"aab"})->text, "xa");
  s.ExpectConversation("xa");
}

TEST(Stop, PartialMatchMovesOnWhileOneIsAlive) {
  // "ab" dies into "b", a prefix of the second string; then that one completes.
  Scripted s({}, {"x", "a", "b", "d", "y"});
  const auto sink = s.Run({"abc", "bd"});
  EXPECT_EQ(sink->text, "xa");
  EXPECT_EQ(sink->finished->stop_match, "bd");
  s.ExpectConversation("xa");
}

TEST(Stop, FirstToCompleteWins) {
  Scripted s({}, {"x", "a", "b", "c", "d"});
  const auto sink = s.Run({"abcd", "bc"});
  EXPECT_EQ(sink->text, "xa");
  EXPECT_EQ(sink->finished->stop_match, "bc");
  s.ExpectConversation("xa");
}

TEST(Stop, LongHeldPartialMatches) {
  std::vector<std::string> pieces(150, "a");
  pieces.insert(pieces.end(), {"b", "q"});
  Scripted s({}, pieces);
  const auto sink = s.Run({"aab"}, 1000);
  EXPECT_EQ(sink->text, std::string(148, 'a'));
  s.ExpectConversation(std::string(148, 'a'));
}

TEST(Stop, LengthReleasesWhatIsHeld) {
  Scripted s({}, {"a", "\n", "\n", "U", "s"});
  const auto sink = s.Run({"\n\nUs"}, 4);
  EXPECT_EQ(sink->finished->reason, FinishReason::kLength);
  EXPECT_EQ(sink->text, "a\n\nU");
  s.ExpectConversation("a\n\nU");
}

TEST(Stop, MinTokensHoldsOffEveryKindOfStop) {
  Scripted s({}, {"a", "S", "b", "S", "c"});
  GenerateRequest request = s.h.Request({250, 251, 252});
  request.stopping.max_tokens = 50;
  request.stopping.min_tokens = 3;
  request.stopping.stop_strings = {"S"};
  request.stopping.ignore_eos = false;
  const auto sink = s.h.Run(request);
  EXPECT_EQ(sink->text, "aSb");
  EXPECT_EQ(sink->finished->stop_match, "S");

  request = s.h.Request({250, 251, 252});  // end-of-document and stop ids are not sampled before
  request.stopping.max_tokens = 50;
  request.stopping.min_tokens = 8;
  request.stopping.ignore_eos = false;
  request.stopping.stop_tokens = {s.tokens[1]};
  const auto longer = s.h.Run(request);
  EXPECT_EQ(longer->events.size(), 8u);
  for (const int32_t token : longer->tokens()) {
    EXPECT_NE(token, 0);
    EXPECT_NE(token, s.tokens[1]);
  }
  EXPECT_EQ(longer->finished->reason, FinishReason::kStop);
}

TEST(Stop, IgnoredEndOfDocumentIsAToken) {
  Scripted s({}, {"a"});
  GenerateRequest request = s.h.Request({250, 251, 252}, "c");
  request.stopping.max_tokens = 3;
  const auto sink = s.h.Run(request);
  EXPECT_THAT(sink->tokens(), ElementsAre(s.tokens[0], 0, 0));
  EXPECT_EQ(sink->text, "a");
  s.ExpectConversation("a");
}

TEST(Stop, CancelDropsWhatIsHeld) {
  for (const CommitMode mode : {CommitMode::kKeepPartial, CommitMode::kOnSuccess}) {
    Scripted s({}, {"a", "b", "\n", "\n", "U", "s"});
    GenerateRequest request = s.h.Request({250, 251, 252}, "c");
    request.commit = mode;
    request.stopping.stop_strings = {"\n\nUs"};
    request.stopping.max_tokens = 100;
    s.h.model.before_step = [&](const StepBatch&) {
      if (s.h.model.steps == 4)
        s.h.engine->Cancel(request.request_id, true);  // "ab\n\nU" is known by then
    };
    const auto sink = s.h.Run(request);
    s.h.model.before_step = nullptr;
    EXPECT_EQ(sink->finished->reason, FinishReason::kCancelled);
    EXPECT_EQ(sink->text, "ab");
    EXPECT_EQ(sink->finished->committed, mode == CommitMode::kKeepPartial);
    if (mode == CommitMode::kKeepPartial) {
      s.ExpectConversation("ab");
    } else {
      EXPECT_FALSE(s.h.engine->conversations().Get({"", "c"}).ok());
    }
  }
}

TEST(Stop, TextIsValidUtf8) {
  Scripted s({"\xE2\x82", "\xAC!"}, {"a", "\xE2\x82", "\xAC!", "\xF0"});
  const auto sink = s.Run({});
  EXPECT_EQ(sink->text, "a\xE2\x82\xAC!\xEF\xBF\xBD");
}

}  // namespace
}  // namespace skein::engine
