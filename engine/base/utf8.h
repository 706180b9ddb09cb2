#pragma once
// UTF-8 by the Unicode table of well-formed sequences: no overlongs, no surrogates, nothing beyond
// U+10FFFF.

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace skein::base {

inline constexpr int kUtf8Incomplete = 0;
inline constexpr int kUtf8Invalid = -1;

// Looks at the sequence that starts at p[0]; n >= 1. Its length when complete, kUtf8Incomplete when
// the n bytes begin a sequence whose end is not there yet, kUtf8Invalid when p[0] begins none.
int Utf8Length(const uint8_t* p, size_t n);

bool IsValidUtf8(absl::string_view bytes);

}  // namespace skein::base
