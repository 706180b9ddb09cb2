#include "engine/checkpoint/pickle_machine.h"

#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"

namespace skein::engine {
namespace {

// Far above any state dict (61 layers: 2,400 tensors, some 40,000 values).
constexpr size_t kMaxValues = 4'000'000;
constexpr size_t kMaxStack = 1'000'000;
constexpr size_t kMaxMarks = 64;

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kBinFloat = 'G',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kEmptyTuple = ')',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
};

}  // namespace

absl::Status PickleMachine::Damaged(absl::string_view what) const {
  return absl::InvalidArgumentError(
      absl::StrCat("data.pkl of the .pth is damaged at byte ", at_, ": ", what));
}

absl::StatusOr<PickleId> PickleMachine::Run() {
  while (!stopped_) {
    SKEIN_ASSIGN_OR_RETURN(const absl::string_view opcode, Take(1));
    SKEIN_RETURN_IF_ERROR(Step(static_cast<uint8_t>(opcode[0])));
  }
  if (stack_.size() != 1 || !marks_.empty()) return Damaged("values are left over at its end");
  if (at_ != input_.size()) return Damaged("bytes after its end");
  return stack_.back();
}

absl::Status PickleMachine::Step(uint8_t opcode) {
  switch (opcode) {
    case kProto: {
      SKEIN_ASSIGN_OR_RETURN(const absl::string_view version, Take(1));
      if (version[0] >= 2 && version[0] <= 5) return absl::OkStatus();
      return Damaged("an unknown version of pickle");
    }
    case kFrame:
      return Take(8).status();
    case kStop:
      stopped_ = true;
      return absl::OkStatus();
    case kMark:
      if (marks_.size() == kMaxMarks) return Damaged("nested too deep");
      marks_.push_back(stack_.size());
      return absl::OkStatus();
    case kNone:
      return Push(PickleValue());
    case kNewTrue:
    case kNewFalse:
      return Push(PickleNumber(PickleKind::kBool, opcode == kNewTrue));
    case kBinPersId:
      return Persistent();
    case kReduce:
      return Reduce();
    case kBuild:
      return Build();
    case kBinInt:
    case kBinInt1:
    case kBinInt2:
    case kBinFloat:
    case kLong1:
      return StepNumber(opcode);
    case kBinUnicode:
    case kShortBinUnicode:
    case kShortBinString:
    case kGlobal:
    case kStackGlobal:
      return StepText(opcode);
    case kBinPut:
    case kLongBinPut:
    case kMemoize:
    case kBinGet:
    case kLongBinGet:
      return StepMemo(opcode);
    default:
      return StepContainer(opcode);
  }
}

absl::Status PickleMachine::StepContainer(uint8_t opcode) {
  switch (opcode) {
    case kEmptyTuple:
      return PushTuple(0);
    case kTuple1:
    case kTuple2:
    case kTuple3:
      return PushTuple(opcode - kTuple1 + 1);
    case kTuple: {
      PickleValue tuple;
      tuple.kind = PickleKind::kTuple;
      SKEIN_ASSIGN_OR_RETURN(tuple.items, PopToMark());
      return Push(std::move(tuple));
    }
    case kEmptyList:
      return Push(PickleNumber(PickleKind::kList, 0));
    case kEmptyDict:
      return Push(PickleNumber(PickleKind::kDict, 0));
    case kAppend: {
      SKEIN_ASSIGN_OR_RETURN(const PickleId item, Pop());
      return AddItems(PickleKind::kList, {item});
    }
    case kSetItem: {
      SKEIN_ASSIGN_OR_RETURN(const PickleId item, Pop());
      SKEIN_ASSIGN_OR_RETURN(const PickleId key, Pop());
      return AddItems(PickleKind::kDict, {key, item});
    }
    case kAppends:
    case kSetItems: {
      SKEIN_ASSIGN_OR_RETURN(const std::vector<PickleId> items, PopToMark());
      return AddItems(opcode == kAppends ? PickleKind::kList : PickleKind::kDict, items);
    }
    default:
      return Damaged(absl::StrCat("the instruction 0x", absl::Hex(opcode),
                                  " does not occur in a file of weights; refusing to go on"));
  }
}

absl::Status PickleMachine::StepMemo(uint8_t opcode) {
  if (opcode == kMemoize) return Memorize(memo_.size());
  const bool wide = opcode == kLongBinPut || opcode == kLongBinGet;
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view bytes, Take(wide ? 4 : 1));
  const uint32_t slot =
      wide ? LoadLittleEndian<uint32_t>(bytes.data()) : static_cast<uint8_t>(bytes[0]);
  if (opcode == kBinPut || opcode == kLongBinPut) return Memorize(slot);
  const auto found = memo_.find(slot);
  if (found == memo_.end()) return Damaged("it refers to a value that was never stored");
  if (stack_.size() == kMaxStack) return Damaged("too many values");
  stack_.push_back(found->second);
  return absl::OkStatus();
}

absl::Status PickleMachine::StepNumber(uint8_t opcode) {
  uint64_t size = opcode == kBinInt ? 4 : opcode == kBinInt1 ? 1 : opcode == kBinInt2 ? 2 : 8;
  if (opcode == kLong1) {
    SKEIN_ASSIGN_OR_RETURN(const absl::string_view length, Take(1));
    size = static_cast<uint8_t>(length[0]);
    if (size > 8) return Damaged("a number of more than 64 bits");
  }
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view bytes, Take(size));
  if (opcode == kBinFloat) return Push(PickleNumber(PickleKind::kFloat, 0));
  uint64_t bits = 0;
  for (uint64_t i = 0; i < size; ++i) bits |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  const bool is_signed = opcode == kBinInt || opcode == kLong1;
  if (is_signed && size > 0 && size < 8 && (bits >> (8 * size - 1)) != 0) {
    bits |= ~uint64_t{0} << (8 * size);
  }
  return Push(PickleNumber(PickleKind::kInt, static_cast<int64_t>(bits)));
}

absl::Status PickleMachine::StepText(uint8_t opcode) {
  if (opcode == kGlobal) {
    SKEIN_ASSIGN_OR_RETURN(const absl::string_view module, TakeLine());
    SKEIN_ASSIGN_OR_RETURN(const absl::string_view name, TakeLine());
    return Global(module, name);
  }
  if (opcode == kStackGlobal) {
    SKEIN_ASSIGN_OR_RETURN(const PickleId name, Pop());
    SKEIN_ASSIGN_OR_RETURN(const PickleId module, Pop());
    if (values_[name].kind != PickleKind::kString || values_[module].kind != PickleKind::kString) {
      return Damaged("a global that is not named by strings");
    }
    return Global(values_[module].text, values_[name].text);
  }
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view length, Take(opcode == kBinUnicode ? 4 : 1));
  const uint64_t size = opcode == kBinUnicode ? LoadLittleEndian<uint32_t>(length.data())
                                              : static_cast<uint8_t>(length[0]);
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view text, Take(size));
  return Push(PickleText(PickleKind::kString, text));
}

absl::Status PickleMachine::Push(PickleValue value) {
  if (values_.size() == kMaxValues || stack_.size() == kMaxStack) return Damaged("too many values");
  stack_.push_back(static_cast<PickleId>(values_.size()));
  values_.push_back(std::move(value));
  return absl::OkStatus();
}

absl::StatusOr<PickleId> PickleMachine::Pop() {
  if (stack_.size() == Floor()) return Damaged("it takes a value where there is none");
  const PickleId id = stack_.back();
  stack_.pop_back();
  return id;
}

absl::StatusOr<std::vector<PickleId>> PickleMachine::PopToMark() {
  if (marks_.empty()) return Damaged("a mark is missing");
  const size_t height = marks_.back();
  marks_.pop_back();
  std::vector<PickleId> items(stack_.begin() + height, stack_.end());
  stack_.resize(height);
  return items;
}

absl::Status PickleMachine::PushTuple(size_t size) {
  PickleValue tuple;
  tuple.kind = PickleKind::kTuple;
  tuple.items.resize(size);
  for (size_t i = size; i-- > 0;) {
    SKEIN_ASSIGN_OR_RETURN(tuple.items[i], Pop());
  }
  return Push(std::move(tuple));
}

absl::Status PickleMachine::AddItems(PickleKind kind, const std::vector<PickleId>& items) {
  if (stack_.size() == Floor() || values_[stack_.back()].kind != kind) {
    return Damaged("items for something that is no container");
  }
  if (kind == PickleKind::kDict && items.size() % 2 != 0) return Damaged("a key without a value");
  std::vector<PickleId>& target = values_[stack_.back()].items;
  target.insert(target.end(), items.begin(), items.end());
  return absl::OkStatus();
}

absl::Status PickleMachine::Memorize(uint32_t slot) {
  if (stack_.size() == Floor()) return Damaged("it stores a value where there is none");
  memo_[slot] = stack_.back();
  return absl::OkStatus();
}

absl::StatusOr<absl::string_view> PickleMachine::Take(uint64_t bytes) {
  if (!InRange(at_, bytes, input_.size())) return Damaged("it ends in the middle");
  const absl::string_view taken = input_.substr(at_, bytes);
  at_ += bytes;
  return taken;
}

absl::StatusOr<absl::string_view> PickleMachine::TakeLine() {
  const size_t end = input_.find('\n', at_);
  if (end == absl::string_view::npos || end - at_ > 256) return Damaged("a name without an end");
  const absl::string_view line = input_.substr(at_, end - at_);
  at_ = end + 1;
  return line;
}

}  // namespace skein::engine
