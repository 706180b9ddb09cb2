#include "engine/text/python_literal.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/text/utf8.h"

namespace skein::engine {
namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

struct Prefix {
  bool bytes = false;
  bool raw = false;
};

// Takes the letters before the quote.
absl::StatusOr<Prefix> TakePrefix(absl::string_view* literal) {
  Prefix prefix;
  std::string letters;
  while (!literal->empty() && literal->front() != '\'' && literal->front() != '"' &&
         letters.size() < 3) {
    letters.push_back(static_cast<char>(literal->front() | 0x20));  // ASCII lower case
    literal->remove_prefix(1);
  }
  prefix.bytes = letters == "b" || letters == "br" || letters == "rb";
  prefix.raw = letters == "r" || letters == "br" || letters == "rb";
  const bool known = prefix.bytes || prefix.raw || letters.empty() || letters == "u";
  if (!known || literal->empty()) {
    return absl::InvalidArgumentError("not a Python str or bytes literal: a quote is missing");
  }
  return prefix;
}

// The inside of one literal, between the quotes.
class Body {
 public:
  Body(absl::string_view text, char quote, Prefix prefix)
      : text_(text), quote_(quote), prefix_(prefix) {}

  absl::StatusOr<std::string> Parse() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == quote_) {
        return absl::InvalidArgumentError("the closing quote is followed by more text");
      }
      if (c == '\\') {
        SKEIN_RETURN_IF_ERROR(prefix_.raw ? RawBackslash() : Escape());
      } else {
        SKEIN_RETURN_IF_ERROR(Plain());
      }
    }
    return std::move(out_);
  }

 private:
  absl::Status Plain() {
    const auto* p = reinterpret_cast<const uint8_t*>(text_.data()) + at_;
    const int length = base::Utf8Length(p, text_.size() - at_);
    if (length <= 0)
      return absl::InvalidArgumentError("a str literal with bytes that are not UTF-8");
    if (prefix_.bytes && length > 1) {
      return absl::InvalidArgumentError("a bytes literal may only contain ASCII characters");
    }
    out_.append(text_.data() + at_, length);
    at_ += length;
    return absl::OkStatus();
  }

  // In a raw literal a backslash stands for itself and shields the character after it.
  absl::Status RawBackslash() {
    if (at_ + 1 == text_.size())
      return absl::InvalidArgumentError("a backslash before the closing quote");
    out_.push_back('\\');
    ++at_;
    if (text_[at_] != quote_ && text_[at_] != '\\') return absl::OkStatus();
    out_.push_back(text_[at_++]);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (at_ + 1 == text_.size())
      return absl::InvalidArgumentError("a backslash before the closing quote");
    const char c = text_[at_ + 1];
    if (c >= '0' && c <= '7') return Octal();
    if (c == 'x') return Hex(2);
    if (!prefix_.bytes && c == 'u') return Hex(4);
    if (!prefix_.bytes && c == 'U') return Hex(8);
    if (!prefix_.bytes && c == 'N') {
      return absl::InvalidArgumentError("\\N{...} is not supported: write \\uXXXX or \\UXXXXXXXX");
    }
    static constexpr char kNames[] = "\\'\"abfnrtv";
    static constexpr char kValues[] = "\\'\"\a\b\f\n\r\t\v";
    if (const size_t i = absl::string_view(kNames).find(c); i != absl::string_view::npos) {
      out_.push_back(kValues[i]);
      at_ += 2;
      return absl::OkStatus();
    }
    out_.push_back('\\');  // Python keeps the backslash of an escape that it does not know
    ++at_;
    return absl::OkStatus();
  }

  absl::Status Octal() {
    uint32_t value = 0;
    ++at_;
    for (int i = 0; i < 3 && at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '7'; ++i) {
      value = value * 8 + (text_[at_++] - '0');
    }
    return Append(prefix_.bytes ? value & 0xFF : value);
  }

  absl::Status Hex(int digits) {
    uint32_t value = 0;
    at_ += 2;
    for (int i = 0; i < digits; ++i, ++at_) {
      const int digit = at_ < text_.size() ? HexValue(text_[at_]) : -1;
      if (digit < 0)
        return absl::InvalidArgumentError(absl::StrCat("an escape needs ", digits, " hex digits"));
      value = value * 16 + digit;
    }
    return Append(value);
  }

  absl::Status Append(uint32_t value) {
    if (prefix_.bytes) {
      out_.push_back(static_cast<char>(value));
      return absl::OkStatus();
    }
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      return absl::InvalidArgumentError(
          absl::StrCat("U+", absl::Hex(value), " is not a character"));
    }
    AppendUtf8(value, &out_);
    return absl::OkStatus();
  }

  const absl::string_view text_;
  const char quote_;
  const Prefix prefix_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> ParsePythonLiteral(absl::string_view literal) {
  SKEIN_ASSIGN_OR_RETURN(const Prefix prefix, TakePrefix(&literal));
  const char quote = literal.front();
  if (literal.size() < 2 || literal.back() != quote) {
    return absl::InvalidArgumentError(
        "not a Python str or bytes literal: the closing quote is missing");
  }
  return Body(literal.substr(1, literal.size() - 2), quote, prefix).Parse();
}

}  // namespace skein::engine
