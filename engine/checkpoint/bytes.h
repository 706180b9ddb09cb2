#pragma once
// Reading untrusted bytes: arithmetic that cannot wrap, little-endian loads, names made safe to
// print.

#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

// False when the result does not fit.
inline bool CheckedAdd(uint64_t a, uint64_t b, uint64_t* out) {
  return !__builtin_add_overflow(a, b, out);
}
inline bool CheckedMul(uint64_t a, uint64_t b, uint64_t* out) {
  return !__builtin_mul_overflow(a, b, out);
}

// True when [offset, offset + size) lies in [0, limit).
inline bool InRange(uint64_t offset, uint64_t size, uint64_t limit) {
  return offset <= limit && size <= limit - offset;
}

// The caller has checked that the bytes are there.
template <typename T>
T LoadLittleEndian(const void* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

template <typename T>
void AppendLittleEndian(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// A name from a file, quoted for a message: control bytes escaped, cut when long.
inline std::string Quoted(absl::string_view name) {
  constexpr size_t kLongest = 100;
  const bool cut = name.size() > kLongest;
  return absl::StrCat("'", absl::CHexEscape(name.substr(0, kLongest)), cut ? "..." : "", "'");
}

}  // namespace skein::engine
