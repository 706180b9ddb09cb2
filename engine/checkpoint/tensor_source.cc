#include "engine/checkpoint/tensor_source.h"

#include <unordered_set>

#include "engine/base/check.h"
#include "engine/base/utf8.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/parsed_checkpoint.h"

namespace skein::engine {

uint64_t TensorSource::size() const {
  uint64_t bytes = SizeOf(dtype);
  for (int64_t dimension : shape) bytes *= dimension;  // CheckSources has seen that it fits
  return bytes;
}

absl::Status CheckSources(const std::vector<TensorSource>& tensors) {
  std::unordered_set<std::string> names;
  for (const TensorSource& tensor : tensors) {
    if (tensor.name.empty() || tensor.name == "__metadata__" || !base::IsValidUtf8(tensor.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a tensor cannot be called ", Quoted(tensor.name)));
    }
    if (!names.insert(tensor.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("two tensors are called ", Quoted(tensor.name)));
    }
    uint64_t bytes = 0;
    SKEIN_RETURN_IF_ERROR(CheckShape(tensor.name, tensor.shape, tensor.dtype, &bytes));
  }
  return absl::OkStatus();
}

std::vector<TensorSource> ToSources(const std::vector<TensorToWrite>& tensors) {
  std::vector<TensorSource> sources;
  sources.reserve(tensors.size());
  for (const TensorToWrite& tensor : tensors) {
    const void* data = tensor.data;
    sources.push_back(
        {tensor.name, tensor.dtype, tensor.shape, [data](std::vector<uint8_t>*) { return data; }});
  }
  return sources;
}

}  // namespace skein::engine
