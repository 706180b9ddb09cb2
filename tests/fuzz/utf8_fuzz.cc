// Any bytes in any parts: the output is valid UTF-8, does not depend on the parts, and is the input
// when that is valid.

#include <cstddef>
#include <cstdint>
#include <string>

#include "engine/base/check.h"
#include "engine/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const size_t part = 1 + data[0] % 8;
  const absl::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  skein::engine::Utf8Stream parts, whole;
  std::string in_parts, at_once;
  size_t shown = 0;
  for (size_t i = 0; i < input.size(); i += part) {
    parts.Push(input.substr(i, part), &in_parts);
    SKEIN_CHECK(parts.held().size() <= 3);
    SKEIN_CHECK(skein::engine::IsValidUtf8(absl::string_view(in_parts).substr(shown)));
    shown = in_parts.size();
  }
  parts.Finish(&in_parts);
  whole.Push(input, &at_once);
  whole.Finish(&at_once);
  SKEIN_CHECK(in_parts == at_once);
  SKEIN_CHECK(skein::engine::IsValidUtf8(input) == (at_once == input));
  return 0;
}
