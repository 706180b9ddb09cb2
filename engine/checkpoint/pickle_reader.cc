#include "engine/checkpoint/pickle_reader.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"
#include "engine/checkpoint/pickle_machine.h"

namespace skein::engine {
namespace {

absl::string_view KindName(PickleKind kind) {
  switch (kind) {
    case PickleKind::kNone:
      return "None";
    case PickleKind::kBool:
      return "a bool";
    case PickleKind::kInt:
      return "an int";
    case PickleKind::kFloat:
      return "a float";
    case PickleKind::kString:
      return "a str";
    case PickleKind::kTuple:
      return "a tuple";
    case PickleKind::kList:
      return "a list";
    case PickleKind::kDict:
      return "a dict";
    case PickleKind::kTensor:
      return "a tensor";
    default:
      return "something else";
  }
}

bool HoldsTensors(const PickleMachine& machine, const PickleValue& value) {
  return value.kind == PickleKind::kDict &&
         std::any_of(value.items.begin(), value.items.end(),
                     [&](PickleId id) { return machine.value(id).kind == PickleKind::kTensor; });
}

// What entries that are no tensors mean, for the person who has the file. OK when there are none.
absl::Status CheckEntries(const PickleMachine& machine, const PickleValue& dict) {
  absl::Status other;
  int nested_left = 16;  // dicts to look into: a hostile file may name a large one very often
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const absl::string_view name = machine.value(dict.items[i]).text;
    const PickleValue& value = machine.value(dict.items[i + 1]);
    if (value.kind == PickleKind::kTensor) continue;
    if (name == "_strategy" || name == "_version" || name == "_rescale_layer") {
      return absl::InvalidArgumentError(absl::StrCat(
          "the entry ", Quoted(name),
          " says that this file was converted for one strategy of the rwkv package (transposed "
          "and rescaled); use the original .pth"));
    }
    if (value.kind == PickleKind::kDict && nested_left-- > 0 && HoldsTensors(machine, value)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the weights are nested under ", Quoted(name),
          "; save that part alone: torch.save(torch.load(file)[", Quoted(name), "], ...)"));
    }
    if (!other.ok()) continue;
    other = absl::InvalidArgumentError(
        absl::StrCat("the entry ", Quoted(name), " of the .pth is ", KindName(value.kind),
                     ", not a tensor; a checkpoint holds tensors only: "
                     "torch.save(model.state_dict(), ...)"));
  }
  return other;
}

std::vector<int64_t> Numbers(const PickleMachine& machine, PickleId tuple) {
  std::vector<int64_t> numbers;
  for (PickleId id : machine.value(tuple).items) numbers.push_back(machine.value(id).number);
  return numbers;
}

PickledTensor Describe(const PickleMachine& machine, absl::string_view name,
                       const PickleValue& value) {
  PickledTensor tensor;
  tensor.name = std::string(name);
  const PickleValue& storage = machine.value(value.items[0]);
  tensor.storage_type = storage.text;
  tensor.storage_key = machine.value(storage.items[2]).text;
  tensor.storage_elements = machine.value(storage.items[4]).number;
  tensor.offset = machine.value(value.items[1]).number;
  tensor.shape = Numbers(machine, value.items[2]);
  tensor.strides = Numbers(machine, value.items[3]);
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<PickledTensor>> ReadPickledStateDict(absl::string_view pickle) {
  PickleMachine machine(pickle);
  SKEIN_ASSIGN_OR_RETURN(const PickleId top, machine.Run());
  const PickleValue& dict = machine.value(top);
  if (dict.kind != PickleKind::kDict) {
    return absl::InvalidArgumentError(
        absl::StrCat("the .pth holds ", KindName(dict.kind), ", not a dict of tensors"));
  }
  if (dict.items.size() / 2 > kMaxTensors) {
    return absl::InvalidArgumentError("the .pth holds more tensors than any model has");
  }
  std::vector<PickledTensor> tensors;
  std::unordered_set<std::string> names;
  for (size_t i = 0; i < dict.items.size(); i += 2) {
    const PickleValue& key = machine.value(dict.items[i]);
    const PickleValue& value = machine.value(dict.items[i + 1]);
    if (key.kind != PickleKind::kString) {
      return absl::InvalidArgumentError(
          absl::StrCat("the .pth has ", KindName(key.kind), " for the name of a tensor"));
    }
    if (!names.emplace(key.text).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("the .pth holds the name ", Quoted(key.text), " twice"));
    }
    if (value.kind == PickleKind::kTensor) tensors.push_back(Describe(machine, key.text, value));
  }
  SKEIN_RETURN_IF_ERROR(CheckEntries(machine, dict));
  return tensors;
}

}  // namespace skein::engine
