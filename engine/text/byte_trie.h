#pragma once
// Longest match of byte strings. A node keeps the set of bytes that continue it as 256 bits; the
// children of a node lie side by side, so a step is one bit test, one popcount and one load,
// whatever the vocabulary looks like.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace skein::engine {

class ByteTrie {
 public:
  // pieces[id] is the byte string of id; empty ones are left out. `order` lists the ids of the
  // others, sorted by their strings, which are all different.
  ByteTrie(const std::vector<std::string>& pieces, const std::vector<int32_t>& order);

  struct Match {
    int32_t id = 0;  // 0: nothing matches
    size_t length = 0;
  };
  // The longest piece that begins at p[0].
  Match Longest(const uint8_t* p, size_t n) const;

 private:
  struct Node {
    uint64_t bits[4] = {0, 0, 0, 0};   // which bytes continue
    uint8_t before[4] = {0, 0, 0, 0};  // bits set in the words before this one
    uint32_t first_child = 0;
    int32_t id = 0;  // the piece that ends here
  };
  std::vector<Node> nodes_;
};

}  // namespace skein::engine
