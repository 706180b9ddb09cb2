#include "engine/store/conversation.h"

#include <algorithm>

namespace skein::engine {

int64_t Conversation::Depth(int64_t version) const {
  int64_t depth = 0;
  for (; version != 0; version = versions.at(version).parent) ++depth;
  return depth;
}

std::vector<int32_t> Conversation::Tokens(int64_t version, int64_t from) const {
  int64_t end = TokensAt(version);
  std::vector<int32_t> tokens(end - from);
  while (end > from) {
    const Version& v = versions.at(version);
    const int64_t begin = v.tokens - v.turn->tokens();
    for (int64_t i = std::max(begin, from); i < end; ++i) tokens[i - from] = v.turn->at(i - begin);
    end = begin;
    version = v.parent;
  }
  return tokens;
}

SnapshotCache::CellRef Conversation::NearestState(int64_t version, int64_t limit,
                                                  uint64_t model) const {
  while (version != 0) {
    const Version& v = versions.at(version);
    if (v.has_state() && v.cell->snapshot->consumed <= limit &&
        v.cell->snapshot->model_fingerprint == model) {
      return v.cell;
    }
    version = v.parent;
  }
  return nullptr;
}

Miss Conversation::WhyMissed(int64_t version, uint64_t model) const {
  const Version& v = versions.at(version);
  if (v.turn->model != model) return Miss::kModel;
  if (v.cell == nullptr) return v.gone;
  return v.cell->snapshot == nullptr ? Miss::kEvicted : Miss::kEmptyInput;
}

const char* MissName(Miss miss) {
  switch (miss) {
    case Miss::kNone:
      return "";
    case Miss::kEvicted:
      return "evicted";
    case Miss::kHistory:
      return "history";
    case Miss::kNotMade:
      return "not_made";
    case Miss::kModel:
      return "model";
    case Miss::kEmptyInput:
      return "empty_input";
  }
  return "";
}

}  // namespace skein::engine
