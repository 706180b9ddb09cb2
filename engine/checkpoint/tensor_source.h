#pragma once
// What the writers write: tensors whose bytes are made when their turn comes, so that converting a
// checkpoint needs memory for one tensor at a time.

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/checkpoint.h"

namespace skein::engine {

struct TensorSource {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  // Row-major bytes of `dtype`; may use `scratch` to hold them. Valid until the next call.
  std::function<const void*(std::vector<uint8_t>* scratch)> bytes;

  uint64_t size() const;  // in bytes
};

// Names distinct, not empty and valid UTF-8, shapes possible. INVALID_ARGUMENT says which is not.
absl::Status CheckSources(const std::vector<TensorSource>& tensors);
std::vector<TensorSource> ToSources(const std::vector<TensorToWrite>& tensors);

absl::Status WriteSafetensorsFrom(const std::string& path, std::vector<TensorSource> tensors,
                                  const std::map<std::string, std::string>& metadata);
absl::Status WritePthFrom(const std::string& path, const std::vector<TensorSource>& tensors);

}  // namespace skein::engine
