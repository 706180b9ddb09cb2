#pragma once
// Names and metadata are text: both file formats want valid UTF-8.

#include "absl/strings/string_view.h"

namespace skein::engine {

// True for well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF).
bool IsUtf8(absl::string_view text);

}  // namespace skein::engine
