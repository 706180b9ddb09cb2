// The World-format parser on files of its own making, and the tokenizer on the public vocabulary.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"
#include "tests/temp_folder.h"

namespace skein::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Ids 1..256: the bytes, as the public file writes them.
std::string ByteLines() {
  std::string text;
  for (int b = 0; b < 256; ++b) {
    absl::StrAppend(&text, b + 1, b < 128 ? " '" : " b'", "\\x", absl::Hex(b, absl::kZeroPad2),
                    "' 1\n");
  }
  return text;
}

std::unique_ptr<Tokenizer> Parse(const std::string& text) {
  auto tokenizer = ParseWorldVocabulary(text);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::string ErrorOf(const std::string& text) {
  const auto tokenizer = ParseWorldVocabulary(text);
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(tokenizer.status().message());
}

TEST(WorldVocabularyTest, TakesTheLongestMatch) {
  const auto tokenizer = Parse(ByteLines() + "257 'ab' 2\n258 'abcd' 4\n259 ' a' 2\n");
  EXPECT_EQ(tokenizer->kind(), "world");
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_THAT(tokenizer->Encode("abcd"), ElementsAre(258));
  EXPECT_THAT(tokenizer->Encode("abc"), ElementsAre(257, 'c' + 1));
  EXPECT_THAT(tokenizer->Encode("abce"), ElementsAre(257, 'c' + 1, 'e' + 1));
  EXPECT_THAT(tokenizer->Encode(" abcd"), ElementsAre(259, 'b' + 1, 'c' + 1, 'd' + 1));
  EXPECT_THAT(tokenizer->Encode(absl::string_view("\0\xff", 2)), ElementsAre(1, 256));
  EXPECT_TRUE(tokenizer->Encode("").empty());
}

TEST(WorldVocabularyTest, SaysWhichIdsStandForSomething) {
  const auto tokenizer = Parse(ByteLines() + "300 'xyz' 3\n");
  EXPECT_EQ(tokenizer->vocab_size(), 301);
  EXPECT_TRUE(tokenizer->IsValid(0));
  EXPECT_EQ(tokenizer->Bytes(0), "");
  EXPECT_TRUE(tokenizer->IsValid(300));
  EXPECT_EQ(tokenizer->Bytes(300), "xyz");
  for (const int32_t id : {-1, 257, 299, 301, 1 << 30}) {
    EXPECT_FALSE(tokenizer->IsValid(id)) << id;
    EXPECT_EQ(tokenizer->Bytes(id), "") << id;
  }
}

TEST(WorldVocabularyTest, ReadsCrlfAndAFileWithoutALastNewline) {
  const std::string text = ByteLines() + "257 ' two words ' 11";
  for (const std::string& file : {text, absl::StrReplaceAll(text, {{"\n", "\r\n"}})}) {
    EXPECT_EQ(Parse(file)->Bytes(257), " two words ");
  }
}

TEST(WorldVocabularyTest, ErrorsNameTheLine) {
  const std::string bytes = ByteLines();
  const auto error = [&](const std::string& line) { return ErrorOf(bytes + line); };
  EXPECT_THAT(error("257 'ab' 3\n"),
              HasSubstr("line 257: the literal has 2 bytes, the line says 3"));
  EXPECT_THAT(error("257 '\\x80' 1\n"), HasSubstr("has 2 bytes"));  // a str: U+0080
  EXPECT_THAT(error("256 'ab' 2\n"), HasSubstr("id 256 is already in line 256"));
  EXPECT_THAT(error("257 'ab' 2\n258 'ab' 2\n"),
              HasSubstr("line 258: the same bytes as the token of line 257"));
  EXPECT_THAT(error("0 'ab' 2\n"), HasSubstr("line 257: the id must be a number from 1"));
  EXPECT_THAT(error("-1 'ab' 2\n"), HasSubstr("line 257: the id"));
  EXPECT_THAT(error("1048576 'ab' 2\n"), HasSubstr("line 257: the id"));
  EXPECT_THAT(error("99999999999999999999 'ab' 2\n"), HasSubstr("line 257: the id"));
  EXPECT_THAT(error("257 'ab'\n"), HasSubstr("line 257: expected"));
  EXPECT_THAT(error("\n"), HasSubstr("line 257: expected"));
  EXPECT_THAT(error("257 'ab' x\n"), HasSubstr("line 257: the byte length"));
  EXPECT_THAT(error("257 '' 0\n"), HasSubstr("line 257: a token of 0 bytes"));
  EXPECT_THAT(error("257 ab 2\n"), HasSubstr("line 257: not a Python"));
  EXPECT_THAT(error(absl::StrCat("257 '", std::string(1025, 'a'), "' 1025\n")),
              HasSubstr("1025 bytes"));
  EXPECT_THAT(ErrorOf(""), HasSubstr("empty"));
}

TEST(WorldVocabularyTest, SaysWhichByteIsMissing) {
  const std::string text = absl::StrReplaceAll(ByteLines(), {{"66 '\\x41' 1\n", ""}});
  EXPECT_THAT(ErrorOf(text),
              HasSubstr("1 of the 256 bytes have no token of their own, the first is 0x41"));
  EXPECT_THAT(ErrorOf("1 'ab' 2\n"), HasSubstr("256 of the 256 bytes"));
}

TEST(WorldVocabularyTest, BoundsWhatAFileCanAllocate) {
  std::string text = ByteLines();
  for (int id = 257; id < 257 + 5000; ++id) {
    absl::StrAppend(&text, id, " '", absl::Dec(id, absl::kZeroPad10), std::string(1000, 'x'),
                    "' 1010\n");
  }
  EXPECT_THAT(ErrorOf(text), HasSubstr("bytes in all"));
  EXPECT_THAT(ErrorOf(std::string((16 << 20) + 1, 'x')), HasSubstr("at most 16777216"));
}

TEST(WorldVocabularyTest, LoadNamesTheFile) {
  EXPECT_TRUE(absl::IsNotFound(LoadWorldVocabulary("/no/such/file").status()));
  const std::string path = TempFolder() + "/bad_vocabulary.txt";
  std::ofstream(path) << "1 oops 4\n";
  EXPECT_THAT(std::string(LoadWorldVocabulary(path).status().message()),
              HasSubstr(path + ": line 1: "));
}

// The public file, where deploy/install-deps.sh puts it.
class PublicVocabularyTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* deps = std::getenv("SKEIN_DEPS");
    const char* home = std::getenv("HOME");
    const std::string folder =
        deps != nullptr ? deps : absl::StrCat(home != nullptr ? home : "", "/.cache/skein");
    auto loaded = LoadWorldVocabulary(folder + "/rwkv_vocab_v20230424.txt");
    if (loaded.ok()) {
      tokenizer_ = loaded->release();
    } else {
      ASSERT_TRUE(absl::IsNotFound(loaded.status())) << loaded.status();
    }
  }
  static void TearDownTestSuite() { delete tokenizer_; }
  void SetUp() override {
    if (tokenizer_ == nullptr) {
      GTEST_SKIP() << "THE WORLD VOCABULARY IS NOT INSTALLED: nothing about it was tested. "
                      "deploy/install-deps.sh installs it.";
    }
  }
  static Tokenizer* tokenizer_;
};
Tokenizer* PublicVocabularyTest::tokenizer_ = nullptr;

TEST_F(PublicVocabularyTest, HasTheKnownTokens) {
  EXPECT_EQ(tokenizer_->vocab_size(), 65530);
  int not_utf8 = 0;
  size_t longest = 0;
  for (int32_t id = 1; id < tokenizer_->vocab_size(); ++id) {
    ASSERT_TRUE(tokenizer_->IsValid(id)) << id;
    not_utf8 += !IsValidUtf8(tokenizer_->Bytes(id));
    longest = std::max(longest, tokenizer_->Bytes(id).size());
    ASSERT_THAT(tokenizer_->Encode(tokenizer_->Bytes(id)), ElementsAre(id));
  }
  EXPECT_EQ(not_utf8, 486);
  EXPECT_EQ(longest, 128);
  EXPECT_EQ(tokenizer_->Bytes(65529), std::string(128, ' '));
  EXPECT_EQ(tokenizer_->Bytes(261), "\n\n");
}

TEST_F(PublicVocabularyTest, GoldenVectors) {
  EXPECT_THAT(tokenizer_->Encode("User: hi\n\nAssistant:"),
              ElementsAre(24281, 59, 4571, 261, 5585, 41693, 59));
  EXPECT_THAT(tokenizer_->Encode("Assistant: <think>\n</think>"),
              ElementsAre(5585, 41693, 59, 295, 35762, 63, 11, 754, 35762, 63));
  EXPECT_THAT(tokenizer_->Encode("\n\n"), ElementsAre(261));
  EXPECT_THAT(tokenizer_->Encode("\n\nUser"), ElementsAre(261, 24281));
  EXPECT_THAT(tokenizer_->Encode("Hello world! 你好 🦆"),
              ElementsAre(33155, 40213, 34, 33, 10464, 11685, 33, 3319, 167, 135));
  EXPECT_THAT(tokenizer_->Encode("```json"), ElementsAre(6884, 26060));
}

// The definition: at each place the longest token that matches, found without the trie.
std::vector<int32_t> SlowEncode(const Tokenizer& tokenizer, absl::string_view text) {
  std::vector<int32_t> tokens;
  while (!text.empty()) {
    int32_t best = 0;
    for (int32_t id = 1; id < tokenizer.vocab_size(); ++id) {
      const absl::string_view piece = tokenizer.Bytes(id);
      if (piece.size() > tokenizer.Bytes(best).size() && text.substr(0, piece.size()) == piece)
        best = id;
    }
    tokens.push_back(best);
    text.remove_prefix(tokenizer.Bytes(best).size());
  }
  return tokens;
}

TEST_F(PublicVocabularyTest, AgreesWithTheDefinition) {
  std::mt19937 random(1);
  for (int i = 0; i < 40; ++i) {
    std::string text;  // pieces of tokens, so that matches of all lengths and broken ones occur
    while (text.size() < 60) {
      const absl::string_view piece = tokenizer_->Bytes(1 + random() % 65529);
      absl::StrAppend(&text, piece.substr(0, 1 + random() % piece.size()));
    }
    EXPECT_EQ(tokenizer_->Encode(text), SlowEncode(*tokenizer_, text)) << text;
  }
}

TEST_F(PublicVocabularyTest, RandomBytesComeBack) {
  std::mt19937 random(2);
  for (int i = 0; i < 2000; ++i) {
    std::string text(random() % 200, '\0');
    for (char& c : text) c = static_cast<char>(random());
    EXPECT_EQ(tokenizer_->Decode(tokenizer_->Encode(text)), text);
  }
  std::vector<int32_t> tokens(1000);
  for (int32_t& token : tokens) token = 1 + random() % 65529;
  const std::string text = tokenizer_->Decode(tokens);
  EXPECT_EQ(tokenizer_->Decode(tokenizer_->Encode(text)), text);
}

}  // namespace
}  // namespace skein::engine
