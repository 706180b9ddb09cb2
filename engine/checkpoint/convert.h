#pragma once
// One checkpoint into another kind of file or another type of numbers.

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "engine/checkpoint.h"

namespace skein::engine {

// Writes the tensors of `in` to `out`, whose suffix (.pth or .safetensors) says the kind of file;
// metadata goes along where the kind has any. With a dtype (fp32 or bf16) every tensor is converted
// to it, else each keeps its own. `in` may be `out`. Uses memory for one tensor at a time.
absl::Status ConvertCheckpoint(const std::string& in, const std::string& out,
                               std::optional<DType> dtype);

}  // namespace skein::engine
