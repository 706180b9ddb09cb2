#include "engine/hold_back.h"

#include <algorithm>
#include <utility>

namespace skein::engine {

HoldBack::HoldBack(const std::vector<std::string>& stop_strings) : matcher_(stop_strings) {
  size_t longest = 0;
  for (const std::string& string : stop_strings) longest = std::max(longest, string.size());
  held_.reserve(longest + 1);
  bytes_.reserve(2 * longest + 64);
}

std::optional<HoldBack::Match> HoldBack::Push(TokenEvent token, absl::string_view bytes,
                                              std::vector<TokenEvent>* released) {
  const int64_t begin = matcher_.position();
  const auto match = matcher_.Push(bytes);
  held_.push_back({std::move(token), begin, begin + static_cast<int64_t>(bytes.size())});
  bytes_.append(bytes.data(), bytes.size());
  if (match.has_value()) return Cut(*match, released);
  size_t final = 0;
  while (final < held_.size() && held_[final].end <= matcher_.partial_begin()) ++final;
  Release(final, released);
  return std::nullopt;
}

HoldBack::Match HoldBack::Cut(const StopMatcher::Match& match, std::vector<TokenEvent>* released) {
  size_t kept = 0;
  while (held_[kept].end <= match.begin) ++kept;
  const int64_t first_byte = held_.front().begin;
  Match cut;
  cut.stop_string = match.string;
  cut.dropped = static_cast<int32_t>(held_.size() - kept);
  cut.lead = bytes_.substr(held_[kept].begin - first_byte, match.begin - held_[kept].begin);
  Release(kept, released);
  held_.clear();
  bytes_.clear();
  return cut;
}

void HoldBack::ReleaseAll(std::vector<TokenEvent>* released) { Release(held_.size(), released); }

void HoldBack::Release(size_t n, std::vector<TokenEvent>* released) {
  if (n == 0) return;
  bytes_.erase(0, held_[n - 1].end - held_.front().begin);
  for (size_t i = 0; i < n; ++i) released->push_back(std::move(held_[i].token));
  held_.erase(held_.begin(), held_.begin() + n);
}

}  // namespace skein::engine
