#pragma once
// A stream of tokens to train on: documents one after the other, each ended by id 0. In memory
// (tokenised text) or mapped (binidx). Immutable once made; thread-safe.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/file.h"

namespace skein::trainer {

class TokenStream {
 public:
  TokenStream() = default;
  // weights[i] is the loss weight of predicting tokens[i]; empty: 1 for all. ends: index after each
  // document.
  TokenStream(std::vector<int32_t> tokens, std::vector<float> weights, std::vector<int64_t> ends);
  // Unsigned integers of `width` bytes (1, 2 or 4) at `data`, inside `file`.
  TokenStream(std::shared_ptr<base::MappedFile> file, const uint8_t* data, int width, int64_t size,
              std::vector<int64_t> ends);

  int64_t size() const { return end_ - begin_; }
  bool weighted() const { return weights_ != nullptr; }
  // Ends of documents inside this stream.
  std::vector<int64_t> DocumentEnds() const;
  void Read(int64_t offset, int64_t n, int32_t* out) const;
  void ReadWeights(int64_t offset, int64_t n, float* out) const;  // 1 when not weighted
  int32_t MaxToken() const;
  // Tokens [begin, end) of this stream; shares the memory.
  TokenStream Slice(int64_t begin, int64_t end) const;

 private:
  // The slices of one stream share these three; each is dropped with its last slice.
  std::shared_ptr<const std::vector<int32_t>> tokens_;  // or
  std::shared_ptr<base::MappedFile> file_;
  std::shared_ptr<const std::vector<float>> weights_;
  std::shared_ptr<const std::vector<int64_t>> ends_;
  const uint8_t* data_ = nullptr;
  int width_ = 4;
  int64_t begin_ = 0, end_ = 0;
};

// Cuts the last `fraction` off: at a document's end when one is within 2 % of the data of the
// place, else there. The second part may be empty when the data is too short.
std::pair<TokenStream, TokenStream> SplitForValidation(const TokenStream& all, double fraction);

}  // namespace skein::trainer
