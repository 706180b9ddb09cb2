#pragma once
// Holds sampled tokens back while they may be the beginning of a stop string. Pure; engine thread
// only.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/request.h"
#include "engine/stop_matcher.h"

namespace skein::engine {

class HoldBack {
 public:
  struct Match {
    int32_t stop_string = 0;  // which one
    int32_t dropped = 0;      // this many of the newest tokens leave the conversation
    std::string lead;         // bytes of the first dropped token before the stop string; they stay
  };

  explicit HoldBack(const std::vector<std::string>& stop_strings);

  // Takes a sampled token. Tokens that are final now go to *released, in order. After a match no
  // more calls.
  std::optional<Match> Push(TokenEvent token, absl::string_view bytes,
                            std::vector<TokenEvent>* released);
  // No stop string will come: everything is final.
  void ReleaseAll(std::vector<TokenEvent>* released);

  int32_t held() const { return static_cast<int32_t>(held_.size()); }

 private:
  struct Held {
    TokenEvent token;
    int64_t begin = 0;  // offset of its bytes in the stream
    int64_t end = 0;
  };
  void Release(size_t n, std::vector<TokenEvent>* released);
  Match Cut(const StopMatcher::Match& match, std::vector<TokenEvent>* released);

  StopMatcher matcher_;
  std::vector<Held> held_;
  std::string bytes_;  // of the held tokens
};

}  // namespace skein::engine
