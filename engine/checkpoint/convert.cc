#include "engine/checkpoint/convert.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/checkpoint/float_bits.h"
#include "engine/checkpoint/tensor_source.h"

namespace skein::engine {
namespace {

const void* Contents(const TensorView& tensor, DType dtype, std::vector<uint8_t>* scratch) {
  if (tensor.dtype == dtype && tensor.contiguous()) return tensor.data;
  const int64_t n = tensor.elements();
  scratch->resize(n * SizeOf(dtype));
  if (tensor.dtype == dtype) {
    tensor.CopyRaw(scratch->data());
  } else if (dtype == DType::kF32) {
    tensor.CopyToF32(reinterpret_cast<float*>(scratch->data()));
  } else {
    std::vector<float> wide(n);
    tensor.CopyToF32(wide.data());
    auto* narrow = reinterpret_cast<uint16_t*>(scratch->data());
    for (int64_t i = 0; i < n; ++i) narrow[i] = NarrowToBF16(wide[i]);
  }
  return scratch->data();
}

}  // namespace

absl::Status ConvertCheckpoint(const std::string& in, const std::string& out,
                               std::optional<DType> dtype) {
  if (dtype == DType::kF16) {
    return absl::InvalidArgumentError(
        "weights are written as fp32 or bf16; fp16 has too small a range for some models");
  }
  const bool pth = absl::EndsWith(out, ".pth");
  if (!pth && !absl::EndsWith(out, ".safetensors")) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", out, "': the name must end in .pth or .safetensors"));
  }
  SKEIN_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(in));
  std::vector<TensorSource> sources;
  for (const TensorView& tensor : checkpoint->tensors()) {
    const DType target = dtype.value_or(tensor.dtype);
    sources.push_back(
        {tensor.name, target, tensor.shape, [&tensor, target](std::vector<uint8_t>* scratch) {
           return Contents(tensor, target, scratch);
         }});
  }
  if (pth) return WritePthFrom(out, sources);
  return WriteSafetensorsFrom(out, std::move(sources), checkpoint->metadata());
}

}  // namespace skein::engine
