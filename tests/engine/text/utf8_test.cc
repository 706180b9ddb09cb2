// Utf8Stream and IsValidUtf8 against a decoder that works on code points, for all short byte
// sequences.

#include "engine/text/utf8.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/tokenizer.h"

namespace skein::engine {
namespace {

// Independent of the table in utf8.cc: decodes the bits, then asks whether encoding them again
// gives the same bytes.
int ReferenceLength(const std::string& s, size_t at) {
  for (int length = 1; length <= 4 && at + length <= s.size(); ++length) {
    uint32_t scalar = 0;
    for (int i = 0; i < length; ++i) {
      const auto byte = static_cast<uint8_t>(s[at + i]);
      scalar =
          i > 0 ? scalar << 6 | (byte & 0x3F) : byte & (length == 1 ? 0x7F : 0xFF >> (length + 1));
    }
    if (scalar > 0x10FFFF || (scalar >= 0xD800 && scalar <= 0xDFFF)) continue;
    std::string again;
    AppendUtf8(scalar, &again);
    if (again == s.substr(at, length)) return length;
  }
  return 0;
}

std::string Reference(const std::string& s) {
  std::string out;
  for (size_t i = 0; i < s.size();) {
    const int length = ReferenceLength(s, i);
    if (length > 0) {
      out.append(s, i, length);
    } else {
      out.append(kReplacement);
    }
    i += std::max(length, 1);
  }
  return out;
}

// Pushes the parts between the cuts (bit i: a cut after byte i); what is out must be valid UTF-8 at
// each moment.
std::string Streamed(const std::string& s, uint32_t cuts) {
  Utf8Stream stream;
  std::string out;
  size_t begin = 0;
  for (size_t i = 0; i < s.size(); ++i) {
    if (i + 1 < s.size() && (cuts >> i & 1) == 0) continue;
    stream.Push(absl::string_view(s).substr(begin, i + 1 - begin), &out);
    begin = i + 1;
    EXPECT_LE(stream.held().size(), 3);
    EXPECT_TRUE(IsValidUtf8(out));
  }
  stream.Finish(&out);
  EXPECT_EQ(stream.held().size(), 0);
  return out;
}

void CheckAllCuts(const std::string& s) {
  const std::string expected = Reference(s);
  for (uint32_t cuts = 0; cuts < 1u << (s.size() - 1); ++cuts) {
    ASSERT_EQ(Streamed(s, cuts), expected) << testing::PrintToString(s) << " cuts " << cuts;
  }
  ASSERT_EQ(IsValidUtf8(s), expected == s);
}

TEST(Utf8Test, AllSequencesOfOneAndTwoBytes) {
  for (int a = 0; a < 256; ++a) {
    CheckAllCuts(std::string(1, static_cast<char>(a)));
    for (int b = 0; b < 256; ++b) {
      CheckAllCuts({static_cast<char>(a), static_cast<char>(b)});
    }
  }
}

// Three and four bytes: every lead, and the bytes on both sides of every border.
TEST(Utf8Test, BordersOfLongSequences) {
  const std::string borders = "A\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xC2\xE0\xED\xF0\xF4\xFF";
  for (int a = 0xC0; a < 256; ++a) {
    for (const char b : borders) {
      for (const char c : borders) {
        CheckAllCuts({static_cast<char>(a), b, c});
        for (const char d : borders) CheckAllCuts({static_cast<char>(a), b, c, d});
      }
    }
  }
}

TEST(Utf8Test, EveryCodePointIsValidAndSurvivesEveryCut) {
  for (uint32_t scalar = 0; scalar <= 0x10FFFF; scalar += scalar < 0x3000 ? 1 : 37) {
    if (scalar >= 0xD800 && scalar <= 0xDFFF) continue;
    std::string s;
    AppendUtf8(scalar, &s);
    ASSERT_TRUE(IsValidUtf8(s)) << scalar;
    ASSERT_EQ(Streamed(s, 0xF), s) << scalar;
    ASSERT_EQ(Streamed(s, 0x0), s) << scalar;
  }
}

TEST(Utf8Test, HoldsBackOnlyWhatMayStillBecomeValid) {
  Utf8Stream stream;
  std::string out;
  stream.Push("\xF0\x9F\xA6", &out);
  EXPECT_EQ(out, "");
  EXPECT_EQ(stream.held(), "\xF0\x9F\xA6");
  stream.Push("\x86!", &out);
  EXPECT_EQ(out, "🦆!");
  stream.Push("\xC0", &out);  // can never become valid
  EXPECT_EQ(out, "🦆!\xEF\xBF\xBD");
  out.clear();
  stream.Push("\xE2\x82", &out);
  stream.Finish(&out);
  EXPECT_EQ(out, "\xEF\xBF\xBD\xEF\xBF\xBD");  // one per byte
}

TEST(Utf8Test, RandomBytesInRandomParts) {
  std::mt19937 random(3);
  const std::string alphabet = "aé你🦆";
  for (int i = 0; i < 3000; ++i) {
    std::string s(1 + random() % 30, '\0');
    for (char& c : s)
      c = random() % 8 == 0 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
    ASSERT_EQ(Streamed(s, random()), Reference(s)) << testing::PrintToString(s);
  }
}

}  // namespace
}  // namespace skein::engine
