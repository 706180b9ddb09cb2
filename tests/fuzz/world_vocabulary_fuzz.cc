// Any bytes as a vocabulary file: an error or a tokenizer that gives every text back.

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/text/python_literal.h"
#include "engine/tokenizer.h"

namespace {

// Fuzzed lines after the 256 bytes, so that files are accepted often.
const std::string& ByteLines() {
  static const std::string kLines = [] {
    std::string text;
    for (int b = 0; b < 256; ++b) {
      static constexpr char kHex[] = "0123456789abcdef";
      text += std::to_string(b + 1) + " b'\\x" + kHex[b >> 4] + kHex[b & 15] + "' 1\n";
    }
    return text;
  }();
  return kLines;
}

void Check(absl::string_view file, absl::string_view text) {
  const auto tokenizer = skein::engine::ParseWorldVocabulary(file);
  if (!tokenizer.ok()) return;
  const auto tokens = (*tokenizer)->Encode(text);
  for (const int32_t token : tokens) SKEIN_CHECK(token != 0 && (*tokenizer)->IsValid(token));
  SKEIN_CHECK((*tokenizer)->Decode(tokens) == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  (void)skein::engine::ParsePythonLiteral(input);
  Check(input, input);
  Check(ByteLines() + std::string(input), input);
  return 0;
}
