#include "trainer/demo_data.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "trainer/demo_text.h"
#include "trainer/tensorboard.h"

namespace skein::trainer {
namespace {

std::unique_ptr<engine::Tokenizer> Vocabulary() {
  auto tokenizer = engine::ParseWorldVocabulary(DemoVocabulary());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(DemoVocabulary, EncodesAnyBytes) {
  const auto tokenizer = Vocabulary();
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode(all)), all);
  EXPECT_LT(tokenizer->vocab_size(), 1024);
}

// What a client sends in one piece (a replayed history) has the tokens of the same text turn by
// turn.
TEST(DemoVocabulary, NoTokenCrossesATurn) {
  const auto tokenizer = Vocabulary();
  DemoDialogue dialogue(Random(4), false);
  std::string whole;
  std::vector<int32_t> pieces;
  for (int turn = 0; turn < 50; ++turn) {
    const DemoTurn t = dialogue.Next();
    const std::string user = absl::StrCat("User: ", t.user, "\n\nAssistant:");
    for (const std::string& piece : {user, " " + t.answer, std::string("\n\n")}) {
      whole += piece;
      tokenizer->Encode(piece, &pieces);
    }
  }
  EXPECT_EQ(tokenizer->Encode(whole), pieces);
}

TEST(DemoVocabulary, WordsAreOneToken) {
  const auto tokenizer = Vocabulary();
  EXPECT_EQ(tokenizer->Encode("\n\n").size(), 1u);
  EXPECT_EQ(tokenizer->Encode("User: What is my name?\n\nAssistant:").size(), 7u);
  EXPECT_EQ(tokenizer->Encode(" Your name is Talor.").size(), 7u);
}

// As people type it: any case, with or without marks at the end.
std::string Plain(absl::string_view text) {
  while (!text.empty() && absl::StrContains(".?!", text.substr(text.size() - 1)))
    text.remove_suffix(1);
  return absl::AsciiStrToLower(text);
}

// What was said, read by the sentences of the demo: the kind of fact, its value. None: no fact.
std::map<size_t, std::string> FactsIn(const std::string& user) {
  std::map<size_t, std::string> facts;
  for (const absl::string_view clause : absl::StrSplit(user, " and ")) {
    const std::string said = Plain(clause);
    for (size_t kind = 0; kind < FactKinds().size(); ++kind) {
      for (const std::string& statement : FactKinds()[kind].statements) {
        absl::string_view value = said;
        const std::string before = absl::AsciiStrToLower(statement.substr(0, statement.find('{')));
        if (absl::ConsumePrefix(&value, before) && !absl::StrContains(value, ' '))
          facts[kind] = std::string(value);
      }
    }
  }
  return facts;
}

// The kind of fact that a question asks for; nothing: it is no such question.
std::optional<size_t> KindAsked(const std::string& user) {
  for (size_t kind = 0; kind < FactKinds().size(); ++kind) {
    for (const std::string& question : FactKinds()[kind].questions) {
      if (Plain(question) == Plain(user)) return kind;
    }
  }
  return std::nullopt;
}

TEST(DemoDialogue, AnswersAreWhatWasSaidLast) {
  int asked = 0, changed = 0, unknown = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    DemoDialogue dialogue(Random(seed), seed % 2 == 1);
    std::map<size_t, std::string> known;
    for (int turn = 0; turn < 40; ++turn) {
      const DemoTurn t = dialogue.Next();
      for (const auto& [kind, value] : FactsIn(t.user)) {
        changed += known.count(kind) > 0 && known[kind] != value;
        known[kind] = value;
      }
      const std::optional<size_t> kind = KindAsked(t.user);
      EXPECT_EQ(t.asks, kind.has_value() && known.count(*kind) > 0) << t.user;
      if (t.asks) {
        EXPECT_EQ(absl::AsciiStrToLower(t.value), known[*kind]) << t.user;
        EXPECT_EQ(t.answer, absl::StrReplaceAll(FactKinds()[*kind].answer, {{"{}", t.value}}));
        ++asked;
      } else if (kind.has_value()) {
        EXPECT_EQ(t.answer, kUnknown) << t.user;
        ++unknown;
      }
    }
  }
  EXPECT_GT(asked, 1000);
  EXPECT_GT(changed, 50);
  EXPECT_GT(unknown, 50);
}

TEST(DemoDialogue, HeldOutValuesNeverOccurInTraining) {
  int asked = 0, held_out = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    DemoDialogue training(Random(seed), false), test(Random(seed), true);
    for (int turn = 0; turn < 20; ++turn) {
      const DemoTurn t = training.Next(), h = test.Next();
      const bool listed = std::count(Colours().begin(), Colours().end(), t.value) +
                              std::count(Foods().begin(), Foods().end(), t.value) >
                          0;
      if (t.asks && !listed) {
        EXPECT_FALSE(DemoHeldOut(t.value)) << t.value;
      }
      asked += h.asks;
      held_out += h.asks && DemoHeldOut(h.value);
    }
  }
  EXPECT_GT(held_out, asked / 2);
}

// A model that looks values up by their first syllable alone must fail in training.
TEST(DemoDialogue, ValuesOfOneDialogueOftenBeginAlike) {
  int alike = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    DemoDialogue dialogue(Random(seed), seed % 2 == 1);
    std::map<std::string, std::set<std::string>> by_syllable;
    for (int turn = 0; turn < 20; ++turn) {
      const DemoTurn t = dialogue.Next();
      if (t.value.size() < 4 || !std::isalpha(static_cast<unsigned char>(t.value[0]))) continue;
      const std::string value = absl::AsciiStrToLower(t.value);
      by_syllable[value.substr(0, 2)].insert(value);
    }
    alike += std::any_of(by_syllable.begin(), by_syllable.end(),
                         [](const auto& entry) { return entry.second.size() > 1; });
  }
  EXPECT_GT(alike, 50);
}

// tests/python/test_demo.py asks the served model for these.
TEST(DemoDialogue, ListedValuesAreHeldOut) {
  std::ifstream file("tests/trainer/held_out_values.txt");
  std::string value;
  int count = 0;
  while (std::getline(file, value)) {
    EXPECT_TRUE(DemoHeldOut(value)) << value;
    ++count;
  }
  EXPECT_GE(count, 100);
}

TEST(DemoSource, BatchesAreAFunctionOfTheSample) {
  const auto tokenizer = Vocabulary();
  const DemoSource source(*tokenizer, 64, 1, false);
  const Batch a = source.Get(100, 4), b = source.Get(102, 2);
  EXPECT_TRUE(a.tokens.narrow(0, 2, 2).equal(b.tokens));
  EXPECT_TRUE(a.weights.narrow(0, 128, 128).equal(b.weights));
  EXPECT_FALSE(a.tokens[0].equal(a.tokens[1]));
}

TEST(TensorBoard, Crc32cKnownValues) {
  EXPECT_EQ(Crc32c("123456789", 9), 0xe3069283u);
  const std::string zeros(32, '\0');
  EXPECT_EQ(Crc32c(zeros.data(), zeros.size()), 0x8a9136aau);
}

}  // namespace
}  // namespace skein::trainer
