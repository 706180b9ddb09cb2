#include "engine/checkpoint/pickle_machine.h"

#include <utility>

#include "absl/strings/match.h"
#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"

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

PickleValue Number(PickleKind kind, int64_t number) {
  PickleValue value;
  value.kind = kind;
  value.number = number;
  return value;
}

PickleValue Text(PickleKind kind, absl::string_view text) {
  PickleValue value;
  value.kind = kind;
  value.text = text;
  return value;
}

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
      return Push(Number(PickleKind::kBool, opcode == kNewTrue));
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
      return Push(Number(PickleKind::kList, 0));
    case kEmptyDict:
      return Push(Number(PickleKind::kDict, 0));
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
  if (opcode == kBinFloat) return Push(Number(PickleKind::kFloat, 0));
  uint64_t bits = 0;
  for (uint64_t i = 0; i < size; ++i) bits |= uint64_t{static_cast<uint8_t>(bytes[i])} << (8 * i);
  const bool is_signed = opcode == kBinInt || opcode == kLong1;
  if (is_signed && size > 0 && size < 8 && (bits >> (8 * size - 1)) != 0) {
    bits |= ~uint64_t{0} << (8 * size);
  }
  return Push(Number(PickleKind::kInt, static_cast<int64_t>(bits)));
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
  return Push(Text(PickleKind::kString, text));
}

absl::Status PickleMachine::Global(absl::string_view module, absl::string_view name) {
  const auto push = [this](PickleKind kind) { return Push(Number(kind, 0)); };
  if (module == "collections" && name == "OrderedDict") return push(PickleKind::kOrderedDictType);
  if ((module == "builtins" || module == "__builtin__") && name == "dict") {
    return push(PickleKind::kDictType);
  }
  if (module == "torch._utils" && name == "_rebuild_tensor_v2") {
    return push(PickleKind::kRebuildTensor);
  }
  if (module == "torch._utils" && name == "_rebuild_parameter") {
    return push(PickleKind::kRebuildParameter);
  }
  // Any type of storage may be named; the reader of the .pth says which it can use.
  if (module == "torch" && absl::EndsWith(name, "Storage")) {
    return Push(Text(PickleKind::kStorageType, name));
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "data.pkl of the .pth names ", Quoted(absl::StrCat(module, ".", name)),
      ", which does not belong in a file of weights (opening it in Python could run code); "
      "save the state dict alone: torch.save(model.state_dict(), ...)"));
}

// ("storage", type, key, location, number of elements)
absl::Status PickleMachine::Persistent() {
  SKEIN_ASSIGN_OR_RETURN(const PickleId id, Pop());
  const PickleValue& tuple = values_[id];
  const auto is = [&](size_t i, PickleKind kind) { return values_[tuple.items[i]].kind == kind; };
  if (tuple.kind != PickleKind::kTuple || tuple.items.size() != 5 || !is(0, PickleKind::kString) ||
      values_[tuple.items[0]].text != "storage" || !is(1, PickleKind::kStorageType) ||
      !is(2, PickleKind::kString) || !is(3, PickleKind::kString) || !is(4, PickleKind::kInt)) {
    return Damaged("a persistent id that is no storage");
  }
  PickleValue storage = Text(PickleKind::kStorage, values_[tuple.items[1]].text);
  storage.items = tuple.items;
  return Push(std::move(storage));
}

absl::Status PickleMachine::Reduce() {
  SKEIN_ASSIGN_OR_RETURN(const PickleId arguments_id, Pop());
  SKEIN_ASSIGN_OR_RETURN(const PickleId function, Pop());
  const PickleValue& arguments = values_[arguments_id];
  if (arguments.kind != PickleKind::kTuple) return Damaged("a call without a tuple of arguments");
  switch (values_[function].kind) {
    case PickleKind::kOrderedDictType:
    case PickleKind::kDictType:
      if (!arguments.items.empty()) return Damaged("a dict that is made from arguments");
      return Push(Number(PickleKind::kDict, 0));
    case PickleKind::kRebuildTensor:
      return RebuildTensor(arguments);
    case PickleKind::kRebuildParameter:
      return RebuildParameter(arguments);
    default:
      return Damaged("a call of something that is no function");
  }
}

// (storage, offset, size, stride, requires_grad, hooks[, metadata])
absl::Status PickleMachine::RebuildTensor(PickleValue arguments) {
  const std::vector<PickleId>& items = arguments.items;
  const auto is = [&](size_t i, PickleKind kind) { return values_[items[i]].kind == kind; };
  if (items.size() < 6 || items.size() > 7 || !is(0, PickleKind::kStorage) ||
      !is(1, PickleKind::kInt) || !is(2, PickleKind::kTuple) || !is(3, PickleKind::kTuple)) {
    return Damaged("the arguments of _rebuild_tensor_v2");
  }
  for (size_t i : {2, 3}) {
    if (values_[items[i]].items.size() > kMaxDimensions) return Damaged("too many dimensions");
    for (PickleId number : values_[items[i]].items) {
      if (values_[number].kind != PickleKind::kInt) return Damaged("a size that is no number");
    }
  }
  arguments.kind = PickleKind::kTensor;
  return Push(std::move(arguments));
}

// (tensor, requires_grad, hooks): the tensor itself, as far as weights go.
absl::Status PickleMachine::RebuildParameter(const PickleValue& arguments) {
  if (arguments.items.size() != 3 || values_[arguments.items[0]].kind != PickleKind::kTensor) {
    return Damaged("the arguments of _rebuild_parameter");
  }
  stack_.push_back(arguments.items[0]);  // Reduce has just taken two
  return absl::OkStatus();
}

// The attributes of an OrderedDict (state_dict() puts version numbers there) or of a parameter.
absl::Status PickleMachine::Build() {
  SKEIN_ASSIGN_OR_RETURN(const PickleId state, Pop());
  if (stack_.size() == Floor()) return Damaged("it takes a value where there is none");
  const PickleKind target = values_[stack_.back()].kind;
  if ((target == PickleKind::kDict || target == PickleKind::kTensor) &&
      values_[state].kind == PickleKind::kDict) {
    return absl::OkStatus();
  }
  return Damaged("it sets the attributes of something that has none");
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
