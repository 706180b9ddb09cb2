// Opening a checkpoint: what kind of file it is by its first bytes, and what its tensors say.

#include "engine/checkpoint.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/base/check.h"
#include "engine/base/parallel.h"
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

// Of the row-major bytes, a window at a time: what was read does not stay this process's memory.
uint64_t HashOf(const Checkpoint& checkpoint, const TensorView& tensor) {
  constexpr uint64_t kWindow = 1 << 20;
  const uint64_t bytes = tensor.elements() * SizeOf(tensor.dtype);
  base::Hasher64 hasher;
  if (!tensor.contiguous()) {  // so it has rows
    std::vector<uint8_t> copy(bytes / tensor.shape[0]);
    for (int64_t row = 0; row < tensor.shape[0]; ++row) {
      tensor.Rows(row, row + 1).CopyRaw(copy.data());
      hasher.Add(copy.data(), copy.size());
    }
    return hasher.Hash();
  }
  for (uint64_t at = 0; at < bytes; at += kWindow) {
    const uint64_t n = std::min(kWindow, bytes - at);
    hasher.Add(tensor.data + at, n);
    checkpoint.Release(tensor.data + at, n);
  }
  return hasher.Hash();
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

uint64_t Checkpoint::Fingerprint(int threads) const {
  std::vector<const TensorView*> sorted;
  for (const TensorView& tensor : tensors_) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(),
            [](const TensorView* a, const TensorView* b) { return a->name < b->name; });
  std::vector<uint64_t> hashes(sorted.size());
  // The large ones first: nobody waits long for the last one.
  std::vector<size_t> order(sorted.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return sorted[a]->elements() > sorted[b]->elements();
  });
  base::ParallelFor(threads, std::ssize(order),
                    [&](int64_t i) { hashes[order[i]] = HashOf(*this, *sorted[order[i]]); });
  // The order of the tensors and the kind of file do not count: a converted model keeps its states.
  std::string summary;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const TensorView& tensor = *sorted[i];
    AppendLittleEndian<uint64_t>(tensor.name.size(), &summary);
    summary += tensor.name;
    summary.push_back(static_cast<char>(tensor.dtype));
    AppendLittleEndian<uint64_t>(tensor.shape.size(), &summary);
    for (int64_t size : tensor.shape) AppendLittleEndian<int64_t>(size, &summary);
    AppendLittleEndian<uint64_t>(hashes[i], &summary);
  }
  return base::Hash64(summary.data(), summary.size());
}

}  // namespace skein::engine
