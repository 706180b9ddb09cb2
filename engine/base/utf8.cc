#include "engine/base/utf8.h"

namespace skein::base {
namespace {

// What the second byte may be depends on the first; every later one is 80..BF.
struct Lead {
  int length;
  uint8_t second_min, second_max;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {kUtf8Invalid, 0, 0};  // a continuation, or an overlong C0 C1
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};  // below: overlong
  if (byte == 0xED) return {3, 0x80, 0x9F};  // above: surrogates
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};  // below: overlong
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};  // above: beyond U+10FFFF
  return {kUtf8Invalid, 0, 0};
}

}  // namespace

int Utf8Length(const uint8_t* p, size_t n) {
  const Lead lead = LeadOf(p[0]);
  if (lead.length <= 1) return lead.length;
  if (n >= 2 && (p[1] < lead.second_min || p[1] > lead.second_max)) return kUtf8Invalid;
  for (size_t i = 2; i < n && i < static_cast<size_t>(lead.length); ++i) {
    if ((p[i] & 0xC0) != 0x80) return kUtf8Invalid;
  }
  return n < static_cast<size_t>(lead.length) ? kUtf8Incomplete : lead.length;
}

bool IsValidUtf8(absl::string_view bytes) {
  const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
  for (size_t i = 0; i < bytes.size();) {
    const int length = Utf8Length(p + i, bytes.size() - i);
    if (length <= 0) return false;
    i += length;
  }
  return true;
}

}  // namespace skein::base
