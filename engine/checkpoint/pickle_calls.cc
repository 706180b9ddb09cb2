// What the names and calls in a pickle may mean: dicts, storages and tensors, nothing else.

#include <utility>

#include "absl/strings/match.h"
#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"
#include "engine/checkpoint/pickle_machine.h"

namespace skein::engine {

absl::Status PickleMachine::Global(absl::string_view module, absl::string_view name) {
  const auto push = [this](PickleKind kind) { return Push(PickleNumber(kind, 0)); };
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
    return Push(PickleText(PickleKind::kStorageType, name));
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
  PickleValue storage = PickleText(PickleKind::kStorage, values_[tuple.items[1]].text);
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
      return Push(PickleNumber(PickleKind::kDict, 0));
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

}  // namespace skein::engine
