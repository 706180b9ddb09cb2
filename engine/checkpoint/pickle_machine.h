#pragma once
// The machine behind pickle_reader.h. Values live in one array and refer to each other by index, so
// a value may contain itself and nothing recurses. Every instruction has at least one byte and adds
// at most one value, so memory is bounded by the length of the pickle.

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

using PickleId = uint32_t;

enum class PickleKind : uint8_t {
  kNone,
  kBool,     // number: 0 or 1
  kInt,      // number
  kFloat,    // the value is not kept: nothing of ours reads one
  kString,   // text
  kTuple,    // items
  kList,     // items
  kDict,     // items: key, value, key, value ..; OrderedDict is one too
  kStorage,  // text: its type, items: the persistent id
  kTensor,   // items: the arguments of _rebuild_tensor_v2
  kOrderedDictType,
  kDictType,
  kStorageType,  // text: "FloatStorage"
  kRebuildTensor,
  kRebuildParameter,
};

struct PickleValue {
  PickleKind kind = PickleKind::kNone;
  int64_t number = 0;
  absl::string_view text;  // into the pickle
  std::vector<PickleId> items;
};

inline PickleValue PickleNumber(PickleKind kind, int64_t number) {
  PickleValue value;
  value.kind = kind;
  value.number = number;
  return value;
}
inline PickleValue PickleText(PickleKind kind, absl::string_view text) {
  PickleValue value;
  value.kind = kind;
  value.text = text;
  return value;
}

class PickleMachine {
 public:
  explicit PickleMachine(absl::string_view pickle) : input_(pickle) {}
  // The value that the pickle describes. Once only.
  absl::StatusOr<PickleId> Run();
  const PickleValue& value(PickleId id) const { return values_[id]; }

 private:
  absl::Status Step(uint8_t opcode);
  absl::Status StepContainer(uint8_t opcode);
  absl::Status StepMemo(uint8_t opcode);
  absl::Status StepNumber(uint8_t opcode);
  absl::Status StepText(uint8_t opcode);

  // pickle_calls.cc
  absl::Status Global(absl::string_view module, absl::string_view name);
  absl::Status Persistent();
  absl::Status Reduce();
  absl::Status Build();
  absl::Status RebuildTensor(PickleValue arguments);
  absl::Status RebuildParameter(const PickleValue& arguments);

  absl::Status Push(PickleValue value);
  absl::StatusOr<PickleId> Pop();
  // Height of the stack at the topmost mark: what is below belongs to an outer value.
  size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }
  // The values above the topmost mark, which goes too.
  absl::StatusOr<std::vector<PickleId>> PopToMark();
  absl::Status PushTuple(size_t size);
  absl::Status AddItems(PickleKind kind, const std::vector<PickleId>& items);
  absl::Status Memorize(uint32_t slot);
  absl::StatusOr<absl::string_view> Take(uint64_t bytes);
  absl::StatusOr<absl::string_view> TakeLine();
  absl::Status Damaged(absl::string_view what) const;

  absl::string_view input_;
  uint64_t at_ = 0;
  std::vector<PickleValue> values_;
  std::vector<PickleId> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  std::unordered_map<uint32_t, PickleId> memo_;
  bool stopped_ = false;
};

}  // namespace skein::engine
