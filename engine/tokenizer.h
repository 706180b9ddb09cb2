#pragma once
// Tokenizers: World format (greedy longest match on bytes) and plain bytes. Immutable and
// thread-safe once made.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "engine/base/utf8.h"

namespace skein::engine {

class Checkpoint;

inline constexpr int32_t kEndOfDocument =
    0;  // id 0 in every RWKV vocabulary: ends and starts a document

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual const std::string& kind() const = 0;  // "world" or "bytes"
  // Ids are in [0, vocab_size()); id 0 has no bytes. Unused ids have no bytes either and are never
  // produced.
  virtual int32_t vocab_size() const = 0;
  // Appends the tokens of any byte string.
  virtual void Encode(absl::string_view bytes, std::vector<int32_t>* tokens) const = 0;
  // The bytes of a token; empty for id 0 and for ids that stand for nothing.
  virtual absl::string_view Bytes(int32_t token) const = 0;
  virtual bool IsValid(int32_t token) const = 0;  // id 0, or an id with bytes

  std::vector<int32_t> Encode(absl::string_view bytes) const;
  std::string Decode(const std::vector<int32_t>& tokens) const;  // bytes, not necessarily UTF-8
  // Of what each id stands for: token ids mean the same where this is the same. Reads all of them.
  uint64_t Fingerprint() const;
};

// Byte tokenizer: V = 257, id 0 ends a document, id = byte + 1.
std::unique_ptr<Tokenizer> NewByteTokenizer();

// A World-format vocabulary: lines `<id> <python literal> <byte length>`. Errors name the line.
// `text` is untrusted.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseWorldVocabulary(absl::string_view text);
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadWorldVocabulary(const std::string& path);

// The checkpoint's own tokenizer from its metadata; else by vocabulary rows: 65536 -> the World
// vocabulary file at `world_path`, 257 -> bytes. FAILED_PRECONDITION says what is missing and which
// `key` of the caller's config, or which file, gives it.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerFor(const Checkpoint& checkpoint,
                                                        const std::string& world_path,
                                                        absl::string_view key = "model.vocabulary");

// Turns a stream of token bytes into valid UTF-8: holds back an incomplete tail (<= 3 bytes),
// replaces each invalid byte (bad lead, overlong, surrogate, beyond U+10FFFF) by U+FFFD and
// resynchronises. One stream, one thread.
class Utf8Stream {
 public:
  // Appends what can be shown now to *out.
  void Push(absl::string_view bytes, std::string* out);
  // The end: what was held back comes as U+FFFD per byte.
  void Finish(std::string* out);
  absl::string_view held() const { return absl::string_view(held_, held_size_); }

 private:
  char held_[4];
  int held_size_ = 0;
};

using base::IsValidUtf8;

}  // namespace skein::engine
