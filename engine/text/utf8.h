#pragma once
// UTF-8 by the Unicode table of well-formed sequences: no overlongs, no surrogates, nothing beyond
// U+10FFFF.

#include <cstddef>
#include <cstdint>
#include <string>

namespace skein::engine {

inline constexpr int kUtf8Incomplete = 0;
inline constexpr int kUtf8Invalid = -1;

// Looks at the sequence that starts at p[0]; n >= 1. Its length when complete, kUtf8Incomplete when
// the n bytes begin a sequence whose end is not there yet, kUtf8Invalid when p[0] begins none.
int Utf8Length(const uint8_t* p, size_t n);

// Appends a scalar value (no surrogate, at most U+10FFFF).
void AppendUtf8(uint32_t scalar, std::string* out);

inline constexpr char kReplacement[] = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace skein::engine
