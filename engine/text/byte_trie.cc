#include "engine/text/byte_trie.h"

#include <bit>

namespace skein::engine {
namespace {

// The pieces order[begin, end) share their first `depth` bytes and belong to one node.
struct Range {
  size_t begin, end, depth;
};

}  // namespace

ByteTrie::ByteTrie(const std::vector<std::string>& pieces, const std::vector<int32_t>& order) {
  // Breadth first: nodes_[i] belongs to ranges[i], and the children of a node are appended in one
  // go.
  std::vector<Range> ranges = {{0, order.size(), 0}};
  nodes_.emplace_back();
  for (size_t i = 0; i < ranges.size(); ++i) {
    auto [begin, end, depth] = ranges[i];
    Node node;
    if (begin < end && pieces[order[begin]].size() == depth) node.id = order[begin++];
    node.first_child = static_cast<uint32_t>(nodes_.size());
    while (begin < end) {
      const uint8_t byte = pieces[order[begin]][depth];
      size_t last = begin;
      while (last < end && static_cast<uint8_t>(pieces[order[last]][depth]) == byte) ++last;
      node.bits[byte >> 6] |= uint64_t{1} << (byte & 63);
      ranges.push_back({begin, last, depth + 1});
      nodes_.emplace_back();
      begin = last;
    }
    for (int w = 1; w < 4; ++w)
      node.before[w] = node.before[w - 1] + std::popcount(node.bits[w - 1]);
    nodes_[i] = node;
  }
}

ByteTrie::Match ByteTrie::Longest(const uint8_t* p, size_t n) const {
  Match match;
  const Node* node = &nodes_[0];
  for (size_t i = 0; i < n; ++i) {
    const int word = p[i] >> 6;
    const uint64_t bit = uint64_t{1} << (p[i] & 63);
    if ((node->bits[word] & bit) == 0) break;
    const int rank = node->before[word] + std::popcount(node->bits[word] & (bit - 1));
    node = &nodes_[node->first_child + rank];
    if (node->id != 0) match = {node->id, i + 1};
  }
  return match;
}

}  // namespace skein::engine
