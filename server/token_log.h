#pragma once
// The tokens of one sequence as its record keeps them: 16 bytes each, alternatives beside, the
// oldest dropped when there are too many. What a reader sees (text, bytes) is made again from the
// ids, so that it can begin after any token. Not thread-safe.

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/request.h"
#include "engine/tokenizer.h"
#include "server/convert.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

class TokenLog {
 public:
  // A place between two tokens, with the bytes of a code point that was not complete there.
  struct Cursor {
    int64_t next = 0;  // the token after it
    int64_t top = 0;   // and where its alternatives begin
    engine::Utf8Stream utf8;
    engine::ThinkingStream thinking;
  };

  TokenLog(std::shared_ptr<const engine::Tokenizer> tokenizer, OutputChoice output)
      : tokenizer_(std::move(tokenizer)),
        output_(output),
        first_{.utf8 = {}, .thinking = engine::ThinkingStream(output.thinking)} {}

  void Append(const std::vector<engine::TokenEvent>& tokens);
  // Forgets the oldest until about `max_bytes` are left, but none from `keep` on.
  void Trim(int64_t max_bytes, int64_t keep);

  // Tokens [first, end) are kept.
  int64_t first() const { return first_.next; }
  int64_t end() const { return first_.next + static_cast<int64_t>(tokens_.size()); }
  int64_t bytes() const;

  // After token n, first() <= n <= end().
  Cursor At(int64_t n) const;
  // Moves on by at most `max_tokens`; what is seen on the way goes to *delta.
  void Read(Cursor* cursor, int64_t max_tokens, v1::Delta* delta) const;
  // At the end: what is left of an incomplete code point.
  void ReadRest(Cursor* cursor, v1::Delta* delta) const;

 private:
  struct Kept {
    int32_t token;
    float logprob;
    float latency;  // seconds
    int32_t tops;   // in tops_
  };

  // Shows a token's text, if it is to be shown.
  void Show(int32_t token, Cursor* cursor, v1::Delta* delta) const;

  const std::shared_ptr<const engine::Tokenizer> tokenizer_;  // shared with the model and its like
  const OutputChoice output_;
  std::vector<Kept> tokens_;
  std::vector<kernels::TokenValue> tops_;
  Cursor first_;
};

}  // namespace skein::server
