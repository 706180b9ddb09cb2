#pragma once
// Names of the types of weights, as in the daemon's config.

#include <optional>
#include <string>

#include "kernels/ops.h"

namespace skein::bench {

inline constexpr kernels::DType kWeights[] = {kernels::DType::kBF16, kernels::DType::kI8,
                                              kernels::DType::kI8A8, kernels::DType::kF32};

inline const char* NameOfWeights(kernels::DType type) {
  if (type == kernels::DType::kI8) return "int8";
  if (type == kernels::DType::kI8A8) return "int8a8";
  return type == kernels::DType::kF32 ? "fp32" : "bf16";
}

inline std::optional<kernels::DType> WeightsOf(const std::string& name) {
  for (const kernels::DType type : kWeights) {
    if (name == NameOfWeights(type)) return type;
  }
  return std::nullopt;
}

}  // namespace skein::bench
