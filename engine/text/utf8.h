#pragma once
// Writing UTF-8; engine/base/utf8.h reads it.

#include <cstdint>
#include <string>

namespace skein::engine {

// Appends a scalar value (no surrogate, at most U+10FFFF).
void AppendUtf8(uint32_t scalar, std::string* out);

inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace skein::engine
