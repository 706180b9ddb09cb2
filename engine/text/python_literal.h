#pragma once
// One Python str or bytes literal, as repr() or a person writes it, turned into bytes. Evaluates
// nothing.

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

// 'text', "text", b'bytes', with any escape of Python's (\N{name} excepted) and the prefixes b, r,
// u in Python's combinations. A str stands for its UTF-8. INVALID_ARGUMENT says what is wrong.
// Triple quotes and joined literals are refused.
absl::StatusOr<std::string> ParsePythonLiteral(absl::string_view literal);

}  // namespace skein::engine
