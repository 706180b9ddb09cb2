#include "engine/text/utf8.h"

#include "engine/base/utf8.h"
#include "engine/tokenizer.h"

namespace skein::engine {
namespace {

// Appends the valid sequences of [p, p + n) and U+FFFD for each invalid byte; returns how many
// bytes at the end begin a sequence that is not complete.
size_t AppendValid(const uint8_t* p, size_t n, std::string* out) {
  size_t i = 0;
  while (i < n) {
    const size_t start = i;
    int length = 1;
    while (i < n && (length = base::Utf8Length(p + i, n - i)) > 0) i += length;
    out->append(reinterpret_cast<const char*>(p + start), i - start);
    if (i == n) break;
    if (length == base::kUtf8Incomplete) return n - i;
    out->append(kReplacement);
    ++i;
  }
  return 0;
}

}  // namespace

void AppendUtf8(uint32_t scalar, std::string* out) {
  const auto put = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (scalar < 0x80) {
    put(scalar);
  } else if (scalar < 0x800) {
    put(0xC0 | (scalar >> 6));
    put(0x80 | (scalar & 0x3F));
  } else if (scalar < 0x10000) {
    put(0xE0 | (scalar >> 12));
    put(0x80 | ((scalar >> 6) & 0x3F));
    put(0x80 | (scalar & 0x3F));
  } else {
    put(0xF0 | (scalar >> 18));
    put(0x80 | ((scalar >> 12) & 0x3F));
    put(0x80 | ((scalar >> 6) & 0x3F));
    put(0x80 | (scalar & 0x3F));
  }
}

void Utf8Stream::Push(absl::string_view bytes, std::string* out) {
  // While something is held, bytes are taken one by one: at most three are needed to complete or
  // refute it.
  while (held_size_ > 0 && !bytes.empty()) {
    held_[held_size_++] = bytes.front();
    bytes.remove_prefix(1);
    const int n = held_size_;
    held_size_ = static_cast<int>(AppendValid(reinterpret_cast<const uint8_t*>(held_), n, out));
    for (int i = 0; i < held_size_; ++i) held_[i] = held_[n - held_size_ + i];
  }
  if (bytes.empty()) return;
  const auto* p = reinterpret_cast<const uint8_t*>(bytes.data());
  const size_t tail = AppendValid(p, bytes.size(), out);
  for (size_t i = 0; i < tail; ++i) held_[i] = bytes[bytes.size() - tail + i];
  held_size_ = static_cast<int>(tail);
}

void Utf8Stream::Finish(std::string* out) {
  for (int i = 0; i < held_size_; ++i) out->append(kReplacement);
  held_size_ = 0;
}

}  // namespace skein::engine
