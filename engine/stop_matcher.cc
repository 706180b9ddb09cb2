#include "engine/stop_matcher.h"

#include "engine/base/check.h"

namespace skein::engine {

StopMatcher::StopMatcher(const std::vector<std::string>& strings) {
  nodes_.emplace_back();
  lengths_.reserve(strings.size());
  for (const std::string& string : strings) {
    SKEIN_CHECK(!string.empty());
    Insert(string, static_cast<int32_t>(lengths_.size()));
    lengths_.push_back(static_cast<int32_t>(string.size()));
  }
  LinkFailures();
}

void StopMatcher::Insert(absl::string_view string, int32_t index) {
  int32_t node = 0;
  for (const char c : string) {
    const uint8_t byte = static_cast<uint8_t>(c);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      Node added;
      added.byte = byte;
      added.depth = nodes_[node].depth + 1;
      added.next_sibling = nodes_[node].first_child;
      nodes_.push_back(added);
      nodes_[node].first_child = child;
    }
    node = child;
  }
  if (nodes_[node].match < 0) nodes_[node].match = index;
}

void StopMatcher::LinkFailures() {
  std::vector<int32_t> order = {0};  // breadth first, so that `fail` of shallower nodes is known
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t parent = order[i];
    for (int32_t node = nodes_[parent].first_child; node >= 0; node = nodes_[node].next_sibling) {
      nodes_[node].fail = parent == 0 ? 0 : Next(nodes_[parent].fail, nodes_[node].byte);
      // A string that ends here is longer than any that ends through `fail`.
      if (nodes_[node].match < 0) nodes_[node].match = nodes_[nodes_[node].fail].match;
      order.push_back(node);
    }
  }
}

int32_t StopMatcher::Child(int32_t node, uint8_t byte) const {
  int32_t child = nodes_[node].first_child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
  return child;
}

int32_t StopMatcher::Next(int32_t node, uint8_t byte) const {
  while (true) {
    const int32_t child = Child(node, byte);
    if (child >= 0) return child;
    if (node == 0) return 0;
    node = nodes_[node].fail;
  }
}

std::optional<StopMatcher::Match> StopMatcher::Push(absl::string_view bytes) {
  for (const char c : bytes) {
    node_ = Next(node_, static_cast<uint8_t>(c));
    ++position_;
    const int32_t string = nodes_[node_].match;
    if (string >= 0) return Match{position_ - lengths_[string], string};
  }
  return std::nullopt;
}

}  // namespace skein::engine
