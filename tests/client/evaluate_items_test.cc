#include "client/evaluate_items.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace skein::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

TEST(ParseLambada, TheLastWordIsAskedFor) {
  const auto items =
      ParseLambada("{\"text\": \"He said \\\"no\\\" to Sam\"}\n\n{\"text\": \"a b\"}\n");
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_THAT(*items, SizeIs(2));
  EXPECT_EQ((*items)[0].prompt, "He said \"no\" to");
  EXPECT_THAT((*items)[0].choices, ElementsAre(" Sam"));
  EXPECT_EQ((*items)[1].prompt, "a");
}

TEST(ParseLambada, ErrorsNameTheLine) {
  EXPECT_THAT(ParseLambada("{\"text\": \"a b\"}\nnonsense").status().message(),
              HasSubstr("line 2: is not a JSON object"));
  EXPECT_THAT(ParseLambada("{\"test\": \"a b\"}").status().message(), HasSubstr("no \"text\""));
  EXPECT_THAT(ParseLambada("{\"text\": \"word\"}").status().message(), HasSubstr("no last word"));
}

TEST(ParseChoices, PlainForm) {
  const auto items = ParseChoices(R"({"prompt": "2 + 2 =", "choices": [" 4", " 5"], "answer": 0})");
  ASSERT_TRUE(items.ok()) << items.status();
  EXPECT_EQ((*items)[0].prompt, "2 + 2 =");
  EXPECT_THAT((*items)[0].choices, ElementsAre(" 4", " 5"));
  EXPECT_EQ((*items)[0].answer, 0);
}

TEST(ParseChoices, HellaSwagIsCleaned) {
  const auto one = ParseChoices(
      R"({"activity_label": "Roof", "ctx_a": "A man sits.", "ctx_b": "he", "endings": ["is [title] up.", "[step] pulls  up."], "label": "1"})");
  ASSERT_TRUE(one.ok()) << one.status();
  EXPECT_EQ((*one)[0].prompt, "Roof: A man sits. He");
  EXPECT_THAT((*one)[0].choices, ElementsAre(" is. up.", "  pulls up."));
  EXPECT_EQ((*one)[0].answer, 1);
}

TEST(ParseChoices, Piqa) {
  const auto items = ParseChoices(
      R"({"goal": "To boil water", "sol1": "heat it.", "sol2": "cool it.", "label": 0})");
  ASSERT_TRUE(items.ok()) << items.status();
  EXPECT_EQ((*items)[0].prompt, "Question: To boil water\nAnswer:");
  EXPECT_THAT((*items)[0].choices, ElementsAre(" heat it.", " cool it."));
}

TEST(ParseChoices, BadLines) {
  const auto message = [](absl::string_view line) {
    return std::string(ParseChoices(line).status().message());
  };
  EXPECT_THAT(message(R"({"choices": ["a", "b"], "answer": 0})"), HasSubstr("no \"prompt\""));
  EXPECT_THAT(message(R"({"prompt": "p", "choices": ["a"], "answer": 0})"),
              HasSubstr("fewer than two"));
  EXPECT_THAT(message(R"({"prompt": "p", "choices": ["a", "b"], "answer": 2})"),
              HasSubstr("does not say which choice is right"));
  EXPECT_THAT(message(R"({"prompt": "p", "choices": ["a", 7], "answer": 0})"),
              HasSubstr("neither"));
  EXPECT_THAT(message(R"({"prompt": "p", "choices": ["a", " "], "answer": 0})"),
              HasSubstr("empty choice"));
  EXPECT_THAT(message("{}"), HasSubstr("line 1: has neither"));
}

TEST(WikiText, Detokenizes) {
  EXPECT_EQ(DetokenizeWikiText(
                "a guest @-@ starring role , in 1 @,@ 000 films ( or so ) ; he 's \" in \" it ."),
            "a guest-starring role, in 1,000 films (or so); he's \"in\" it .");
  EXPECT_EQ(DetokenizeWikiText(" = = Career = = \n It was 2 @.@ 5 \xC2\xB0 C . \n"),
            " == Career ==\nIt was 2.5\xC2\xB0"
            "C.\n");
}

TEST(WikiText, IsCutAtTitles) {
  const auto documents =
      ParseWikiText(" \n = One = \n \n Text . \n = = Part = = \n More . \n = Two = \n End . \n");
  ASSERT_THAT(documents, SizeIs(2));
  EXPECT_THAT(documents[0].text, HasSubstr("Part"));
  EXPECT_THAT(documents[1].text, HasSubstr("Two"));
  EXPECT_EQ(documents[1].bytes, static_cast<int64_t>(std::string(" = Two = \n End . \n").size()));
}

TEST(WikiText, WordsAreCountedAsPythonSplits) {
  EXPECT_EQ(CountWords("a b"), 2);
  EXPECT_EQ(CountWords(" a  b\n"), 4);  // ['', 'a', 'b', '']
  EXPECT_EQ(CountWords(""), 1);
}

TEST(Loss, Rates) {
  Loss loss{-8 * std::log(2.0), 4, 2, 8};
  EXPECT_DOUBLE_EQ(loss.Perplexity(), 4);
  EXPECT_DOUBLE_EQ(loss.WordPerplexity(), 16);
  EXPECT_DOUBLE_EQ(loss.BytePerplexity(), 2);
  EXPECT_DOUBLE_EQ(loss.BitsPerByte(), 1);
}

TEST(CountCharacters, CountsCodePoints) { EXPECT_EQ(CountCharacters("a\xC3\xA9\xE2\x82\xAC"), 3); }

}  // namespace
}  // namespace skein::client
