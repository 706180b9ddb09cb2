#pragma once
// Reads the pickle of a PyTorch state dict without executing anything: a small machine with an
// allow-list of instructions and of names, whose only values are the plain data found in such
// files.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

// A tensor as the pickle describes it; nothing here has been checked against the storage's bytes.
struct PickledTensor {
  std::string name;
  absl::string_view storage_type;  // "BFloat16Storage"
  absl::string_view storage_key;   // names the entry data/<key>
  int64_t storage_elements = 0;
  int64_t offset = 0;  // in elements
  std::vector<int64_t> shape, strides;
};

// A dict (or OrderedDict) of tensors, in its order, names distinct. Points into `pickle`.
absl::StatusOr<std::vector<PickledTensor>> ReadPickledStateDict(absl::string_view pickle);

}  // namespace skein::engine
