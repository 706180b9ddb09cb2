// .pth: a zip whose data.pkl describes tensors and whose other entries are their storages.

#include <memory>
#include <unordered_map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/crc32.h"
#include "engine/checkpoint/parsed_checkpoint.h"
#include "engine/checkpoint/pickle_reader.h"
#include "engine/checkpoint/zip_reader.h"

namespace skein::engine {
namespace {

constexpr uint64_t kMaxPickleBytes = 64 << 20;
// Tensors may share a storage, but a small file must not stand for endless work.
constexpr uint64_t kMaxSharing = 16;

// The zip's entries below its one folder.
class Archive {
 public:
  static absl::StatusOr<Archive> Open(absl::string_view data);
  const ZipEntry* Find(absl::string_view name) const {
    const auto found = entries_.find(absl::StrCat(folder_, name));
    return found == entries_.end() ? nullptr : &found->second;
  }

 private:
  std::string folder_;  // "archive/"
  std::unordered_map<std::string, ZipEntry> entries_;
};

absl::StatusOr<Archive> Archive::Open(absl::string_view data) {
  constexpr absl::string_view kPickle = "/data.pkl";
  SKEIN_ASSIGN_OR_RETURN(const std::vector<ZipEntry> entries, ReadZip(data));
  Archive archive;
  for (const ZipEntry& entry : entries) {
    archive.entries_.emplace(std::string(entry.name), entry);
    if (!absl::EndsWith(entry.name, kPickle)) continue;
    if (!archive.folder_.empty()) {
      return absl::InvalidArgumentError("the .pth holds two files data.pkl");
    }
    archive.folder_ = std::string(entry.name.substr(0, entry.name.size() - kPickle.size() + 1));
  }
  if (archive.folder_.empty()) {
    return absl::InvalidArgumentError(
        "a zip file without data.pkl inside: not a PyTorch checkpoint");
  }
  if (archive.Find("constants.pkl") != nullptr) {
    return absl::UnimplementedError(
        "this is a TorchScript program, not a file of weights; save its state dict with "
        "torch.save");
  }
  return archive;
}

absl::Status CheckStored(const ZipEntry& entry) {
  if (!entry.compressed) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "the entry ", Quoted(entry.name),
      " of the .pth is compressed, so its weights cannot be mapped; load the file in PyTorch and "
      "save it again with torch.save, or unzip it and zip it again with 'zip -0'"));
}

absl::Status CheckByteOrder(const Archive& archive) {
  const ZipEntry* entry = archive.Find("byteorder");
  if (entry == nullptr) return absl::OkStatus();
  SKEIN_RETURN_IF_ERROR(CheckStored(*entry));
  if (entry->contents == "little") return absl::OkStatus();
  if (entry->contents == "big") {
    return absl::UnimplementedError(
        "the .pth was written on a big-endian machine; load it in PyTorch and save it again on a "
        "little-endian one");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the .pth has the unknown byte order ", Quoted(entry->contents)));
}

absl::StatusOr<absl::string_view> FindPickle(const Archive& archive) {
  const ZipEntry& entry = *archive.Find("data.pkl");
  SKEIN_RETURN_IF_ERROR(CheckStored(entry));
  if (entry.contents.size() > kMaxPickleBytes) {
    return absl::InvalidArgumentError("data.pkl of the .pth is larger than that of any model");
  }
  // The weights themselves are not summed: that would read the whole file at each start.
  if (entry.crc32 != 0 && entry.crc32 != Crc32(entry.contents.data(), entry.contents.size())) {
    return absl::InvalidArgumentError("data.pkl of the .pth is damaged: its checksum is wrong");
  }
  return entry.contents;
}

absl::StatusOr<DType> ParseType(const PickledTensor& tensor) {
  if (tensor.storage_type == "FloatStorage") return DType::kF32;
  if (tensor.storage_type == "BFloat16Storage") return DType::kBF16;
  if (tensor.storage_type == "HalfStorage") return DType::kF16;
  return absl::UnimplementedError(absl::StrCat(
      "tensor ", Quoted(tensor.name), " has a ",
      Quoted(absl::StrCat("torch.", tensor.storage_type)),
      "; supported are FloatStorage, BFloat16Storage and HalfStorage: convert the tensors first"));
}

absl::StatusOr<absl::string_view> FindStorage(const Archive& archive, const PickledTensor& tensor,
                                              DType dtype) {
  const ZipEntry* entry = archive.Find(absl::StrCat("data/", tensor.storage_key));
  if (entry == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the storage ", Quoted(tensor.storage_key),
                                                   " of tensor ", Quoted(tensor.name),
                                                   " is missing from the .pth"));
  }
  SKEIN_RETURN_IF_ERROR(CheckStored(*entry));
  uint64_t bytes = 0;
  if (tensor.storage_elements < 0 || !CheckedMul(tensor.storage_elements, SizeOf(dtype), &bytes) ||
      bytes != entry->contents.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the storage ", Quoted(tensor.storage_key), " of tensor ", Quoted(tensor.name),
                     " should have ", tensor.storage_elements, " elements but has ",
                     entry->contents.size(), " bytes"));
  }
  return entry->contents;
}

// The last element lies inside the storage, and no element is there twice: a stride of 0 would let
// a few bytes stand for any number of weights.
absl::Status CheckExtent(const PickledTensor& tensor, uint64_t elements) {
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quoted(tensor.name), " with shape [", absl::StrJoin(tensor.shape, ", "),
        "], strides [", absl::StrJoin(tensor.strides, ", "), "] and offset ", tensor.offset,
        " in a storage of ", tensor.storage_elements, " elements: ", why));
  };
  if (tensor.strides.size() != tensor.shape.size()) return refuse("shape and strides disagree");
  if (tensor.offset < 0) return refuse("the offset is negative");
  uint64_t last = tensor.offset;
  bool fits = true;
  for (size_t d = 0; d < tensor.shape.size(); ++d) {
    if (tensor.strides[d] < 0) return refuse("a stride is negative");
    if (tensor.shape[d] == 0) continue;
    uint64_t reach = 0;
    fits = fits && CheckedMul(tensor.shape[d] - 1, tensor.strides[d], &reach) &&
           CheckedAdd(last, reach, &last);
  }
  const uint64_t storage = tensor.storage_elements;
  const bool inside = elements == 0 ? uint64_t(tensor.offset) <= storage : last < storage;
  if (!fits || !inside) return refuse("it reaches past the end");
  if (elements > storage) return refuse("its elements overlap");
  return absl::OkStatus();
}

absl::StatusOr<TensorView> MakeView(const Archive& archive, const PickledTensor& tensor,
                                    uint64_t* bytes) {
  TensorView view;
  view.name = tensor.name;
  SKEIN_ASSIGN_OR_RETURN(view.dtype, ParseType(tensor));
  SKEIN_RETURN_IF_ERROR(CheckShape(tensor.name, tensor.shape, view.dtype, bytes));
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view storage, FindStorage(archive, tensor, view.dtype));
  SKEIN_RETURN_IF_ERROR(CheckExtent(tensor, *bytes / SizeOf(view.dtype)));
  view.shape = tensor.shape;
  view.strides = tensor.strides;
  view.data = reinterpret_cast<const uint8_t*>(storage.data()) + tensor.offset * SizeOf(view.dtype);
  return view;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ParsedCheckpoint>> ReadPth(absl::string_view data) {
  SKEIN_ASSIGN_OR_RETURN(const Archive archive, Archive::Open(data));
  SKEIN_RETURN_IF_ERROR(CheckByteOrder(archive));
  SKEIN_ASSIGN_OR_RETURN(const absl::string_view pickle, FindPickle(archive));
  SKEIN_ASSIGN_OR_RETURN(const std::vector<PickledTensor> described, ReadPickledStateDict(pickle));
  std::vector<TensorView> tensors;
  tensors.reserve(described.size());
  std::unordered_map<std::string, absl::string_view> types;  // storage -> type
  uint64_t total = 0;
  for (const PickledTensor& tensor : described) {
    const auto [type, is_new] = types.emplace(tensor.storage_key, tensor.storage_type);
    if (!is_new && type->second != tensor.storage_type) {
      return absl::InvalidArgumentError(
          absl::StrCat("the storage ", Quoted(tensor.storage_key), " is used with two types"));
    }
    uint64_t bytes = 0;
    SKEIN_ASSIGN_OR_RETURN(auto view, MakeView(archive, tensor, &bytes));
    tensors.push_back(std::move(view));
    if (!CheckedAdd(total, bytes, &total) || total / kMaxSharing > data.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the tensors of the .pth share storages so often that they stand for more than ",
          kMaxSharing, " times its size"));
    }
  }
  return std::make_unique<ParsedCheckpoint>(std::move(tensors),
                                            std::map<std::string, std::string>());
}

}  // namespace skein::engine
