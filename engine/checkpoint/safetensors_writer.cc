// Writes .safetensors: wider types first, so that every tensor is aligned to its type, and the
// header padded with spaces so that the tensors start at a multiple of 64 bytes.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/base/utf8.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/tensor_source.h"

namespace skein::engine {
namespace {

constexpr uint64_t kAlignment = 64;

const char* TypeName(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F16";
}

std::string MakeHeader(const std::vector<TensorSource>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorSource& tensor : tensors) {
    const uint64_t end = offset + tensor.size();
    header[tensor.name] = {{"dtype", TypeName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump();
  text.resize((8 + text.size() + kAlignment - 1) / kAlignment * kAlignment - 8, ' ');
  return text;
}

}  // namespace

absl::Status WriteSafetensorsFrom(const std::string& path, std::vector<TensorSource> tensors,
                                  const std::map<std::string, std::string>& metadata) {
  SKEIN_RETURN_IF_ERROR(CheckSources(tensors));
  for (const auto& [key, value] : metadata) {
    if (!base::IsValidUtf8(key) || !base::IsValidUtf8(value)) {
      return absl::InvalidArgumentError(
          absl::StrCat("the metadata ", Quoted(key), " is not valid UTF-8"));
    }
  }
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const TensorSource& a, const TensorSource& b) {
                     return SizeOf(a.dtype) > SizeOf(b.dtype);
                   });
  const std::string header = MakeHeader(tensors, metadata);
  std::string length;
  AppendLittleEndian<uint64_t>(header.size(), &length);
  SKEIN_ASSIGN_OR_RETURN(auto file, base::AtomicFile::Create(path));
  SKEIN_RETURN_IF_ERROR(file->Append(length));
  SKEIN_RETURN_IF_ERROR(file->Append(header));
  std::vector<uint8_t> scratch;
  for (const TensorSource& tensor : tensors) {
    if (tensor.size() == 0) continue;
    SKEIN_RETURN_IF_ERROR(file->Append(tensor.bytes(&scratch), tensor.size()));
  }
  return file->Commit();
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  return WriteSafetensorsFrom(path, ToSources(tensors), metadata);
}

}  // namespace skein::engine
