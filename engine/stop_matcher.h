#pragma once
// Finds the first stop string in a stream of bytes, incrementally (Aho-Corasick). Pure; one stream,
// one thread.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace skein::engine {

class StopMatcher {
 public:
  struct Match {
    int64_t begin = 0;   // offset in the stream of its first byte
    int32_t string = 0;  // index in `strings`
  };

  // Strings must not be empty. Memory: 16 bytes per byte of them.
  explicit StopMatcher(const std::vector<std::string>& strings);

  // Takes bytes up to and including the first one that completes a stop string; of several that end
  // there, the longest. Call no more after a match.
  std::optional<Match> Push(absl::string_view bytes);

  int64_t position() const { return position_; }  // bytes taken
  // Where the earliest partial match that is still alive begins; position() when none is.
  int64_t partial_begin() const { return position_ - nodes_[node_].depth; }

 private:
  struct Node {
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t fail = 0;    // longest proper suffix that is a prefix of some string
    int32_t match = -1;  // longest string that ends here, also through `fail`
    int32_t depth = 0;
    uint8_t byte = 0;
  };
  int32_t Child(int32_t node, uint8_t byte) const;
  int32_t Next(int32_t node, uint8_t byte) const;
  void Insert(absl::string_view string, int32_t index);
  void LinkFailures();

  std::vector<Node> nodes_;       // 0 is the root
  std::vector<int32_t> lengths_;  // of the strings
  int32_t node_ = 0;
  int64_t position_ = 0;
};

}  // namespace skein::engine
