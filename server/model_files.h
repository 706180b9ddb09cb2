#pragma once
// Which files Control.LoadModel may read.

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace skein::server {

// The real path of `path`: relative to one of `folders`, or absolute, and inside one of them once
// symbolic links and ".." are resolved. NOT_FOUND otherwise, in the same words whether the file is
// elsewhere or nowhere, so that nobody learns what else is there.
absl::StatusOr<std::string> FindModelFile(const std::string& path,
                                          const std::vector<std::string>& folders);

}  // namespace skein::server
