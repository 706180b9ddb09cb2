#include "trainer/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/file.h"

namespace skein::trainer {
namespace {

namespace fs = std::filesystem;

absl::Status FileError(const std::string& path) {
  const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
  return errno == ENOSPC ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

// Whether the folder holds anything but what a trainer that was killed left half written, which is
// nothing to lose.
absl::StatusOr<bool> HoldsFiles(const std::string& folder) {
  std::error_code error;
  if (!fs::exists(folder, error)) return false;
  if (!fs::is_directory(folder, error)) {
    return absl::AlreadyExistsError(absl::StrCat("run.folder: ", folder, " is a file"));
  }
  fs::directory_iterator file(folder, error);
  for (; !error && file != fs::directory_iterator(); file.increment(error)) {
    if (!base::IsTemporary(file->path().filename().string())) return true;
  }
  if (error) return absl::InternalError(absl::StrCat(folder, ": ", error.message()));
  return false;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunFolder>> RunFolder::Open(const RunConfig& config) {
  SKEIN_ASSIGN_OR_RETURN(const bool existed, HoldsFiles(config.folder));
  if (existed && config.resume == "never") {
    return absl::AlreadyExistsError(
        absl::StrCat("run.folder: ", config.folder,
                     " holds a run already. Go on with it: --set run.resume=always. Or name "
                     "another: --set run.folder=..."));
  }
  if (existed && !fs::exists(config.folder + "/config.yaml")) {
    return absl::AlreadyExistsError(
        absl::StrCat("run.folder: ", config.folder,
                     " is not empty and holds no run (no config.yaml): name another"));
  }
  if (!existed && config.resume == "always") {
    return absl::NotFoundError(absl::StrCat("run.folder: ", config.folder,
                                            " holds no run to resume (run.resume: always)"));
  }
  SKEIN_RETURN_IF_ERROR(base::MakeFolder(config.folder));
  const int lock = open(config.folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock < 0) return FileError(config.folder);
  if (flock(lock, LOCK_EX | LOCK_NB) != 0) {
    close(lock);
    return absl::AlreadyExistsError(
        absl::StrCat("run.folder: ", config.folder, " is in use by another skein-train"));
  }
  std::unique_ptr<RunFolder> folder(new RunFolder(config.folder, lock));
  base::RemoveAbandoned(config.folder);
  std::error_code error;
  folder->existed_ = existed;
  folder->has_state_ = fs::exists(folder->StateFile(), error);
  return folder;
}

RunFolder::~RunFolder() {
  if (log_ != nullptr) std::fclose(log_);
  close(lock_);
}

absl::Status RunFolder::Log(const std::string& json) {
  const std::string path = LogFile();
  if (log_ == nullptr) log_ = std::fopen(path.c_str(), "ab");
  if (log_ == nullptr) return FileError(path);
  const std::string line = json + "\n";
  if (std::fwrite(line.data(), 1, line.size(), log_) != line.size() || std::fflush(log_) != 0)
    return FileError(path);
  return absl::OkStatus();
}

}  // namespace skein::trainer
