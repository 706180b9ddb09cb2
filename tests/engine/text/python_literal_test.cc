#include "engine/text/python_literal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace skein::engine {
namespace {

using ::testing::HasSubstr;

std::string Value(absl::string_view literal) {
  const auto value = ParsePythonLiteral(literal);
  EXPECT_TRUE(value.ok()) << literal << ": " << value.status();
  return value.ok() ? *value : "<error>";
}

std::string Error(absl::string_view literal) {
  const auto value = ParsePythonLiteral(literal);
  EXPECT_FALSE(value.ok()) << literal;
  return std::string(value.status().message());
}

// Each right side is what Python 3 makes of the left one (str: .encode()).
TEST(PythonLiteralTest, Strings) {
  EXPECT_EQ(Value("'abc'"), "abc");
  EXPECT_EQ(Value("\"it's\""), "it's");
  EXPECT_EQ(Value("' a  b '"), " a  b ");
  EXPECT_EQ(Value("''"), "");
  EXPECT_EQ(Value("'你好'"), "你好");
  EXPECT_EQ(Value(R"('\\\'\"')"), "\\'\"");
  EXPECT_EQ(Value(R"('\a\b\f\n\r\t\v')"), "\a\b\f\n\r\t\v");
  EXPECT_EQ(Value(R"('\0')"), std::string(1, '\0'));
  EXPECT_EQ(Value(R"('\101\1012\7x')"), "AA2\ax");
  EXPECT_EQ(Value(R"('\777')"), "\xC7\xBF");  // U+01FF
  EXPECT_EQ(Value(R"('\x41\x80\xff')"), "A\xC2\x80\xC3\xBF");
  EXPECT_EQ(Value(R"('\u4f60\U0001F986')"), "你🦆");
  EXPECT_EQ(Value(R"('\q\8\%')"), "\\q\\8\\%");  // unknown escapes stay
  EXPECT_EQ(Value("u'x'"), "x");
}

TEST(PythonLiteralTest, Bytes) {
  EXPECT_EQ(Value(R"(b'\xe4\xbd')"), "\xE4\xBD");
  EXPECT_EQ(Value(R"(B"a\n\101\777")"), "a\nA\xFF");
  EXPECT_EQ(Value(R"(b'\u4f60\N')"), "\\u4f60\\N");  // no such escapes in bytes
}

TEST(PythonLiteralTest, Raw) {
  EXPECT_EQ(Value(R"(r'\n\'\\x')"), "\\n\\'\\\\x");
  EXPECT_EQ(Value(R"(Rb'\xff')"), "\\xff");
}

TEST(PythonLiteralTest, Refuses) {
  for (const char* text :
       {"", "'", "\"", "abc", "'abc", "abc'", "'abc\"", "x'abc'", "bb'a'", "ub'a'", "1"}) {
    EXPECT_THAT(Error(text), HasSubstr("not a Python str or bytes literal")) << text;
  }
  EXPECT_THAT(Error("'a' 'b'"), HasSubstr("closing quote is followed by more text"));
  EXPECT_THAT(Error("'''a'''"), HasSubstr("closing quote is followed by more text"));
  EXPECT_THAT(Error(R"('a\')"), HasSubstr("backslash before the closing quote"));
  EXPECT_THAT(Error(R"(r'a\')"), HasSubstr("backslash before the closing quote"));
  EXPECT_THAT(Error(R"('\x4')"), HasSubstr("needs 2 hex digits"));
  EXPECT_THAT(Error(R"('\xg0')"), HasSubstr("needs 2 hex digits"));
  EXPECT_THAT(Error(R"('\u123')"), HasSubstr("needs 4 hex digits"));
  EXPECT_THAT(Error(R"('\U0001F98')"), HasSubstr("needs 8 hex digits"));
  EXPECT_THAT(Error(R"('\ud800')"), HasSubstr("U+d800 is not a character"));
  EXPECT_THAT(Error(R"('\U00110000')"), HasSubstr("is not a character"));
  EXPECT_THAT(Error(R"('\N{DUCK}')"), HasSubstr("\\N{...} is not supported"));
  EXPECT_THAT(Error("b'é'"), HasSubstr("may only contain ASCII"));
  EXPECT_THAT(Error("'\xff'"), HasSubstr("not UTF-8"));
}

}  // namespace
}  // namespace skein::engine
