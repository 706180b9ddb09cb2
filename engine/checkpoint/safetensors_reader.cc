// .safetensors: eight bytes of header length, a JSON header, the tensors' bytes without holes.
// The header is read as a stream of events into a fixed form, so that nothing is built for what
// does not belong there, however large or deep it is.

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"

namespace skein::engine {
namespace {

using nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation

struct Entry {
  std::string name, dtype;
  std::vector<uint64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Accepts {"name": {"dtype": "..", "shape": [..], "data_offsets": [b, e]}, ..,
// "__metadata__": {"key": "value", ..}} in any order and nothing else.
class HeaderHandler final : public nlohmann::json_sax<json> {
 public:
  absl::Status status;
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kRoot;
        return true;
      case Place::kRoot:
        return StartMember();
      default:
        return Refuse("an object where none belongs");
    }
  }
  bool key(string_t& key) override {
    if (place_ == Place::kRoot && !names_.insert(key).second) {
      return Refuse(absl::StrCat("the name ", Quoted(key), " twice"));
    }
    if (place_ == Place::kTensor && !CheckField(key)) return false;
    if (place_ == Place::kMetadata && metadata.count(key) > 0) {
      return Refuse(absl::StrCat("the metadata key ", Quoted(key), " twice"));
    }
    key_ = std::move(key);
    return true;
  }
  bool end_object() override {
    if (place_ == Place::kTensor) {
      const Entry& entry = entries.back();
      if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets) {
        return Refuse(absl::StrCat("the tensor ", Quoted(entry.name),
                                   " without dtype, shape or data_offsets"));
      }
    }
    place_ = place_ == Place::kRoot ? Place::kEnd : Place::kRoot;
    return true;
  }
  bool start_array(size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") return Refuse("a list where none belongs");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }
  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }
  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (place_ == Place::kTensor && key_ == "dtype") {
      entries.back().dtype = std::move(value);
      return true;
    }
    return Refuse("a string where none belongs");
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (place_ == Place::kShape) {
      if (entries.back().shape.size() == kMaxDimensions) {
        return Refuse(absl::StrCat("the tensor ", Quoted(entries.back().name), " with more than ",
                                   kMaxDimensions, " dimensions"));
      }
      entries.back().shape.push_back(value);
      return true;
    }
    if (place_ == Place::kOffsets) {
      if (entries.back().offsets.size() == 2)
        return Refuse("data_offsets of more than two numbers");
      entries.back().offsets.push_back(value);
      return true;
    }
    return Refuse("a number where none belongs");
  }
  bool number_integer(number_integer_t) override { return Refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override {
    return Refuse("a number that is no whole number of 64 bits");
  }
  bool boolean(bool) override { return Refuse("a boolean where none belongs"); }
  bool null() override { return Refuse("null where it does not belong"); }
  bool binary(binary_t&) override { return Refuse("binary data"); }
  bool parse_error(size_t position, const std::string&, const json::exception& error) override {
    // The library's message ends with the text it read last, which may be long and unprintable.
    status = absl::InvalidArgumentError(absl::StrCat(
        "the header of the .safetensors file is not valid JSON (byte ", kLengthBytes + position,
        "): ", absl::CHexEscape(absl::string_view(error.what()).substr(0, 160))));
    return false;
  }

 private:
  enum class Place { kStart, kRoot, kTensor, kMetadata, kShape, kOffsets, kEnd };

  bool Refuse(absl::string_view found) {
    status = absl::InvalidArgumentError(
        absl::StrCat("the header of the .safetensors file holds ", found));
    return false;
  }
  bool StartMember() {
    if (key_ == "__metadata__") {
      place_ = Place::kMetadata;
      return true;
    }
    if (entries.size() == kMaxTensors) return Refuse("more tensors than any model has");
    place_ = Place::kTensor;
    entries.emplace_back();
    entries.back().name = key_;
    return true;
  }
  bool CheckField(const std::string& key) {
    Entry& entry = entries.back();
    bool* seen = key == "dtype"          ? &entry.has_dtype
                 : key == "shape"        ? &entry.has_shape
                 : key == "data_offsets" ? &entry.has_offsets
                                         : nullptr;
    if (seen == nullptr) {
      return Refuse(
          absl::StrCat("the unknown field ", Quoted(key), " in the tensor ", Quoted(entry.name)));
    }
    if (*seen) return Refuse(absl::StrCat("the field ", Quoted(key), " twice"));
    *seen = true;
    return true;
  }

  Place place_ = Place::kStart;
  std::string key_;
  std::unordered_set<std::string> names_;
};

absl::StatusOr<DType> ParseType(const Entry& entry) {
  if (entry.dtype == "F32") return DType::kF32;
  if (entry.dtype == "BF16") return DType::kBF16;
  if (entry.dtype == "F16") return DType::kF16;
  return absl::UnimplementedError(
      absl::StrCat("tensor ", Quoted(entry.name), " has the type ", Quoted(entry.dtype),
                   "; supported are F32, BF16 and F16: convert the file first"));
}

absl::StatusOr<TensorView> MakeView(const Entry& entry, absl::string_view body) {
  TensorView view;
  view.name = entry.name;
  SKEIN_ASSIGN_OR_RETURN(view.dtype, ParseType(entry));
  // A size above 2^63 wraps to a negative one, which CheckShape refuses.
  view.shape.assign(entry.shape.begin(), entry.shape.end());
  uint64_t bytes = 0;
  SKEIN_RETURN_IF_ERROR(CheckShape(view.name, view.shape, view.dtype, &bytes));
  if (entry.offsets.size() != 2 || entry.offsets[0] > entry.offsets[1]) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(view.name), " has damaged data_offsets"));
  }
  const uint64_t begin = entry.offsets[0], length = entry.offsets[1] - entry.offsets[0];
  if (!InRange(begin, length, body.size())) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(view.name), " ends at byte ",
                                                   entry.offsets[1], " of ", body.size(),
                                                   ": the file is cut off or damaged"));
  }
  if (length != bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(view.name), " needs ", bytes, " bytes but has ", length));
  }
  view.strides = RowMajorStrides(view.shape);
  view.data = reinterpret_cast<const uint8_t*>(body.data()) + begin;
  return view;
}

// The format has neither overlaps nor holes: data that no name owns may hide anything.
absl::Status CheckCover(const std::vector<Entry>& entries, uint64_t body_size) {
  std::vector<const Entry*> sorted;
  for (const Entry& entry : entries) sorted.push_back(&entry);
  std::sort(sorted.begin(), sorted.end(),
            [](const Entry* a, const Entry* b) { return a->offsets < b->offsets; });
  uint64_t end = 0;
  for (const Entry* entry : sorted) {
    if (entry->offsets[0] != end) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", Quoted(entry->name), " starts at byte ", entry->offsets[0],
                       " where ", end, " was expected: tensors overlap or leave a hole"));
    }
    end = entry->offsets[1];
  }
  if (end == body_size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the file has ", body_size - end, " bytes after its last tensor"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<ParsedCheckpoint>> ReadSafetensors(absl::string_view data) {
  if (data.size() < kLengthBytes) {
    return absl::InvalidArgumentError("too short for a .safetensors file: it is cut off");
  }
  const auto header_bytes = LoadLittleEndian<uint64_t>(data.data());
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header of the .safetensors file claims ",
                                                   header_bytes, " bytes; at most ",
                                                   kMaxHeaderBytes, " are allowed"));
  }
  if (!InRange(kLengthBytes, header_bytes, data.size())) {
    return absl::InvalidArgumentError(absl::StrCat("the header of the .safetensors file claims ",
                                                   header_bytes, " bytes but the file has ",
                                                   data.size(), ": it is cut off"));
  }
  const absl::string_view header = data.substr(kLengthBytes, header_bytes);
  const absl::string_view body = data.substr(kLengthBytes + header_bytes);
  HeaderHandler handler;
  if (!json::sax_parse(header.begin(), header.end(), &handler)) return handler.status;

  std::vector<TensorView> tensors;
  tensors.reserve(handler.entries.size());
  for (const Entry& entry : handler.entries) {
    SKEIN_ASSIGN_OR_RETURN(auto view, MakeView(entry, body));
    tensors.push_back(std::move(view));
  }
  SKEIN_RETURN_IF_ERROR(CheckCover(handler.entries, body.size()));
  return std::make_unique<ParsedCheckpoint>(std::move(tensors), std::move(handler.metadata));
}

}  // namespace skein::engine
