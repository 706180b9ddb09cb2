// Opening a checkpoint: what kind of file it is by its first bytes, and what its tensors say.

#include "engine/checkpoint.h"

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"

namespace skein::engine {
namespace {

bool StartsWith(absl::string_view data, absl::string_view prefix) {
  return data.substr(0, prefix.size()) == prefix;
}

// Kinds of file that people take for a checkpoint; OK when it is none of them.
absl::Status RefuseForeign(absl::string_view data) {
  using absl::InvalidArgumentError;
  using absl::UnimplementedError;
  if (data.empty()) return InvalidArgumentError("the file is empty");
  if (StartsWith(data, "version https://git-lfs")) {
    return InvalidArgumentError(
        "this is a Git LFS pointer of a few bytes, not the weights; fetch them with 'git lfs "
        "pull'");
  }
  if (StartsWith(data, "<!") || StartsWith(data, "<html")) {
    return InvalidArgumentError("this is a web page, not a checkpoint; download the file itself");
  }
  const bool pickle = data.size() >= 2 && data[0] == '\x80' && data[1] >= 2 && data[1] <= 5;
  const bool tar = data.size() >= 262 && data.substr(257, 5) == "ustar";
  if (pickle || tar) {
    return UnimplementedError(
        "this .pth was written by a PyTorch older than 1.6 (no zip inside); load it once in a "
        "recent PyTorch and save it again with torch.save");
  }
  if (StartsWith(data, "GGUF") || StartsWith(data, "ggml") || StartsWith(data, "lmgg") ||
      StartsWith(data, "fmgg")) {
    return UnimplementedError(
        "GGUF and GGML files are not supported; use the original .pth or a .safetensors file");
  }
  if (StartsWith(data, "\x1f\x8b") || StartsWith(data, "\x28\xb5\x2f\xfd") ||
      StartsWith(data, "7z\xbc\xaf")) {
    return UnimplementedError("the file is compressed; unpack it first");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ParsedCheckpoint>> Parse(absl::string_view data) {
  if (StartsWith(data, "PK")) return ReadPth(data);
  SKEIN_RETURN_IF_ERROR(RefuseForeign(data));
  if (data.size() >= 9 && data[8] == '{') return ReadSafetensors(data);
  return absl::InvalidArgumentError(
      absl::StrCat("neither a .safetensors nor a .pth file; it starts with the bytes ",
                   Quoted(data.substr(0, 8))));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  SKEIN_ASSIGN_OR_RETURN(auto file, base::MappedFile::Open(path));
  auto parsed = Parse({reinterpret_cast<const char*>(file->data()), file->size()});
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(),
                        absl::StrCat(path, ": ", parsed.status().message()));
  }
  (*parsed)->Attach(std::move(file));
  return std::unique_ptr<Checkpoint>(*std::move(parsed));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> ParseSafetensors(absl::string_view data) {
  SKEIN_ASSIGN_OR_RETURN(auto parsed, ReadSafetensors(data));
  return std::unique_ptr<Checkpoint>(std::move(parsed));
}

absl::StatusOr<std::unique_ptr<Checkpoint>> ParsePth(absl::string_view data) {
  SKEIN_ASSIGN_OR_RETURN(auto parsed, ReadPth(data));
  return std::unique_ptr<Checkpoint>(std::move(parsed));
}

const TensorView* Checkpoint::Find(absl::string_view name) const {
  for (const TensorView& tensor : tensors_) {
    if (absl::string_view(tensor.name) == name) return &tensor;
  }
  return nullptr;
}

absl::StatusOr<ModelConfig> Checkpoint::Config() const {
  std::vector<TensorShape> shapes;
  shapes.reserve(tensors_.size());
  for (const TensorView& tensor : tensors_) shapes.push_back({tensor.name, tensor.shape});
  auto config = RecognizeModel(shapes);
  if (config.ok() || path_.empty()) return config;
  return absl::Status(config.status().code(), absl::StrCat(path_, ": ", config.status().message()));
}

uint64_t Checkpoint::Fingerprint() const {
  std::vector<const TensorView*> sorted;
  for (const TensorView& tensor : tensors_) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorView* a, const TensorView* b) { return a->name < b->name; });
  // The order of the tensors and the kind of file do not count: a converted model keeps its states.
  std::string summary;
  std::vector<uint8_t> copy;
  for (const TensorView* tensor : sorted) {
    const size_t bytes = tensor->elements() * SizeOf(tensor->dtype);
    const uint8_t* data = tensor->data;
    if (!tensor->contiguous()) {
      copy.resize(bytes);
      tensor->CopyRaw(copy.data());
      data = copy.data();
    }
    AppendLittleEndian<uint64_t>(tensor->name.size(), &summary);
    summary += tensor->name;
    summary.push_back(static_cast<char>(tensor->dtype));
    AppendLittleEndian<uint64_t>(tensor->shape.size(), &summary);
    for (int64_t size : tensor->shape) AppendLittleEndian<int64_t>(size, &summary);
    AppendLittleEndian<uint64_t>(base::Hash64(data, bytes), &summary);
  }
  return base::Hash64(summary.data(), summary.size());
}

}  // namespace skein::engine
