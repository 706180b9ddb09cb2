#include "server/model_files.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/status.h"

namespace skein::server {
namespace {

namespace fs = std::filesystem;

// Both real paths.
bool IsInside(const fs::path& file, const fs::path& folder) {
  const fs::path relative = file.lexically_relative(folder);
  return !relative.empty() && *relative.begin() != ".." && *relative.begin() != ".";
}

}  // namespace

absl::StatusOr<std::string> FindModelFile(const std::string& path,
                                          const std::vector<std::string>& folders) {
  if (path.empty()) return BadField("path", "is empty");
  if (path.find('\0') != std::string::npos) return BadField("path", "has a zero byte");
  if (folders.empty()) {
    return Precondition(
        "LOADING_OFF", "control.model_folders",
        "this server loads no models while it runs: control.model_folders is empty");
  }
  for (const std::string& name : folders) {
    std::error_code error;
    const fs::path folder = fs::canonical(name, error);
    if (error) continue;
    const fs::path file =
        fs::canonical(folder / path, error);  // an absolute path stands for itself
    if (error || !IsInside(file, folder) || !fs::is_regular_file(file, error)) continue;
    return file.string();
  }
  return base::MakeStatus(absl::StatusCode::kNotFound, "MODEL_FILE_NOT_FOUND",
                          absl::StrCat("no file '", path, "' in control.model_folders (",
                                       absl::StrJoin(folders, ", "), ")"));
}

}  // namespace skein::server
