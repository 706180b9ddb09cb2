#include "trainer/tokens.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace skein::trainer {

TokenStream::TokenStream(std::vector<int32_t> tokens, std::vector<float> weights,
                         std::vector<int64_t> ends)
    : tokens_(std::make_shared<const std::vector<int32_t>>(std::move(tokens))),
      ends_(std::make_shared<const std::vector<int64_t>>(std::move(ends))),
      data_(reinterpret_cast<const uint8_t*>(tokens_->data())),
      end_(static_cast<int64_t>(tokens_->size())) {
  if (!weights.empty()) weights_ = std::make_shared<const std::vector<float>>(std::move(weights));
}

TokenStream::TokenStream(std::shared_ptr<base::MappedFile> file, const uint8_t* data, int width,
                         int64_t size, std::vector<int64_t> ends)
    : file_(std::move(file)),
      ends_(std::make_shared<const std::vector<int64_t>>(std::move(ends))),
      data_(data),
      width_(width),
      end_(size) {}

std::vector<int64_t> TokenStream::DocumentEnds() const {
  std::vector<int64_t> inside;
  for (int64_t end : *ends_) {
    if (end > begin_ && end <= end_) inside.push_back(end - begin_);
  }
  return inside;
}

void TokenStream::Read(int64_t offset, int64_t n, int32_t* out) const {
  const uint8_t* p = data_ + (begin_ + offset) * width_;
  for (int64_t i = 0; i < n; ++i, p += width_) {
    uint32_t token = 0;
    std::memcpy(&token, p, static_cast<size_t>(width_));  // little-endian, as the files are
    out[i] = static_cast<int32_t>(token);
  }
}

void TokenStream::ReadWeights(int64_t offset, int64_t n, float* out) const {
  if (weights_ == nullptr) {
    std::fill(out, out + n, 1.0f);
  } else {
    std::copy_n(weights_->data() + begin_ + offset, n, out);
  }
}

int32_t TokenStream::MaxToken() const {
  int32_t max = -1;
  std::vector<int32_t> chunk(1 << 16);
  for (int64_t at = 0; at < size();) {
    const int64_t n = std::min<int64_t>(static_cast<int64_t>(chunk.size()), size() - at);
    Read(at, n, chunk.data());
    for (int64_t i = 0; i < n; ++i) {
      if (chunk[i] < 0) return INT32_MAX;  // a 32-bit id beyond int32
      max = std::max(max, chunk[i]);
    }
    at += n;
  }
  return max;
}

TokenStream TokenStream::Slice(int64_t begin, int64_t end) const {
  TokenStream slice = *this;
  slice.begin_ = begin_ + begin;
  slice.end_ = begin_ + end;
  return slice;
}

std::pair<TokenStream, TokenStream> SplitForValidation(const TokenStream& all, double fraction) {
  const int64_t n = all.size();
  const int64_t target = static_cast<int64_t>(
      std::floor(static_cast<double>(std::max<int64_t>(0, n - 1)) * (1 - fraction)));
  int64_t cut = target;
  int64_t nearest = n / 50;
  for (int64_t end : all.DocumentEnds()) {
    if (end < n && std::llabs(end - target) <= nearest) {
      nearest = std::llabs(end - target);
      cut = end;
    }
  }
  return {all.Slice(0, cut), all.Slice(cut, n)};
}

}  // namespace skein::trainer
