#include "engine/base/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"

namespace skein::base {
namespace {

// The status of a failed system call: "cannot <action> '<path>': <reason>".
absl::Status SystemError(absl::string_view action, const std::string& path, int error) {
  std::string message = absl::StrCat("cannot ", action, " '", path, "': ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT || error == EFBIG) {
    absl::StrAppend(&message, "; free some space or choose another place");
    return absl::ResourceExhaustedError(message);
  }
  return absl::Status(absl::ErrnoToStatusCode(error), message);
}

std::pair<std::string, std::string> FolderAndName(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return {".", path};
  return {slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1)};
}

// Takes ".<digits>" off the end.
bool ConsumeNumber(absl::string_view* name) {
  const size_t dot = name->rfind('.');
  if (dot == absl::string_view::npos || dot + 1 == name->size()) return false;
  if (name->find_first_not_of("0123456789", dot + 1) != absl::string_view::npos) return false;
  name->remove_suffix(name->size() - dot);
  return true;
}

// The name of the file that a temporary will become, as OpenTemporary made it; empty when it is
// none.
absl::string_view NameBehind(absl::string_view temporary) {
  absl::string_view name = temporary;
  const bool is_one =
      ConsumeNumber(&name) && ConsumeNumber(&name) && absl::ConsumeSuffix(&name, ".tmp");
  return is_one ? name : "";
}

// Living writers hold a lock on their temporary, so what can be locked is rubbish and goes.
template <typename Predicate>
void RemoveUnlocked(const std::string& folder, Predicate wanted) {
  DIR* entries = opendir(folder.c_str());
  if (entries == nullptr) return;
  while (const dirent* entry = readdir(entries)) {
    if (!wanted(NameBehind(entry->d_name))) continue;
    const std::string found = folder + "/" + entry->d_name;
    const int fd = open(found.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) continue;
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlink(found.c_str());
    close(fd);
  }
  closedir(entries);
}

// Opens a new temporary and locks it. Another process may take it for rubbish between the two
// calls; then the file has no name any more and a new one is made.
absl::StatusOr<std::pair<std::string, int>> OpenTemporary(const std::string& path) {
  static std::atomic<uint64_t> counter{0};
  for (;;) {
    const std::string name = absl::StrCat(path, ".tmp.", getpid(), ".", counter++);
    const int fd = open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0) {
      if (errno == EEXIST) continue;
      return SystemError("create", name, errno);
    }
    // A file system without locks only loses the sweeping of rubbish.
    while (flock(fd, LOCK_EX) != 0 && errno == EINTR) {
    }
    struct stat info;
    if (fstat(fd, &info) == 0 && info.st_nlink > 0) return std::make_pair(name, fd);
    close(fd);
  }
}

FileIdentity IdentityOf(const struct stat& info) {
  const auto nanoseconds = [](const timespec& t) {
    return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
  };
  return {info.st_ino, static_cast<uint64_t>(info.st_size), nanoseconds(info.st_mtim),
          nanoseconds(info.st_ctim)};
}

// Of the pages that these bytes lie in. It is advice: where the system takes none, all the same.
void Advise(const uint8_t* data, uint64_t bytes, int advice) {
  static const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const uint64_t before = reinterpret_cast<uintptr_t>(data) % page;
  if (bytes > 0) madvise(const_cast<uint8_t*>(data) - before, bytes + before, advice);
}

absl::StatusOr<int> OpenRegular(const std::string& path, struct stat* info) {
  // O_NONBLOCK: a named pipe must be refused, not waited for.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return SystemError("open", path, errno);
  if (fstat(fd, info) != 0) {
    const int error = errno;
    close(fd);
    return SystemError("open", path, error);
  }
  if (!S_ISREG(info->st_mode)) {
    close(fd);
    return absl::InvalidArgumentError(absl::StrCat("'", path, "' is not a regular file"));
  }
  return fd;
}

absl::Status SyncFolder(const std::string& path) {
  const std::string folder = FolderAndName(path).first;
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return SystemError("open the folder", folder, errno);
  const int error = fsync(fd) == 0 ? 0 : errno;
  close(fd);
  // EINVAL: a file system that has no way to sync a folder.
  if (error != 0 && error != EINVAL) return SystemError("write the folder", folder, error);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FileIdentity> Identify(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return SystemError("open", path, errno);
  return IdentityOf(info);
}

MappedFile::MappedFile(std::string path, const uint8_t* data, const FileIdentity& identity)
    : path_(std::move(path)), data_(data), size_(identity.bytes), identity_(identity) {}

void MappedFile::Expect(const uint8_t* data, uint64_t bytes) const {
  Advise(data, bytes, MADV_WILLNEED);
}

// A private mapping that nobody writes to holds nothing that the file does not.
void MappedFile::Release(const uint8_t* data, uint64_t bytes) const {
  Advise(data, bytes, MADV_DONTNEED);
}

MappedFile::~MappedFile() {
  if (size_ > 0) munmap(const_cast<uint8_t*>(data_), size_);
}

absl::StatusOr<std::unique_ptr<MappedFile>> MappedFile::Open(const std::string& path) {
  struct stat info;
  SKEIN_ASSIGN_OR_RETURN(const int fd, OpenRegular(path, &info));
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  static const uint8_t kEmpty = 0;  // a mapping of nothing is not possible
  const uint8_t* data = &kEmpty;
  if (size > 0) {
    void* mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const int error = errno;
      close(fd);
      return SystemError("map", path, error);
    }
    data = static_cast<const uint8_t*>(mapped);
  }
  close(fd);
  return std::unique_ptr<MappedFile>(new MappedFile(path, data, IdentityOf(info)));
}

absl::StatusOr<std::unique_ptr<OpenFile>> OpenFile::Open(const std::string& path) {
  struct stat info;
  SKEIN_ASSIGN_OR_RETURN(const int fd, OpenRegular(path, &info));
  return std::unique_ptr<OpenFile>(new OpenFile(path, fd, info.st_size));
}

OpenFile::~OpenFile() { close(fd_); }

absl::Status OpenFile::Read(uint64_t offset, void* out, size_t bytes) const {
  char* next = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t count = pread(fd_, next, bytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError("read", path_, errno);
    if (count == 0) return absl::DataLossError(absl::StrCat("'", path_, "' has become shorter"));
    next += count;
    offset += static_cast<uint64_t>(count);
    bytes -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError("open", path, errno);
  std::string contents;
  char buffer[65536];
  for (;;) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count == 0) break;
    if (count < 0) {
      if (errno == EINTR) continue;
      const int error = errno;
      close(fd);
      return SystemError("read", path, error);
    }
    contents.append(buffer, static_cast<size_t>(count));
  }
  close(fd);
  return contents;
}

AtomicFile::AtomicFile(std::string path, std::string temporary, int fd)
    : path_(std::move(path)), temporary_(std::move(temporary)), fd_(fd) {}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  unlink(temporary_.c_str());
  close(fd_);
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write '", path, "': there is something that is not a regular file"));
  }
  const auto [folder, name] = FolderAndName(path);
  RemoveUnlocked(folder, [&name = name](absl::string_view behind) { return behind == name; });
  SKEIN_ASSIGN_OR_RETURN(auto temporary, OpenTemporary(path));
  return std::unique_ptr<AtomicFile>(
      new AtomicFile(path, std::move(temporary.first), temporary.second));
}

absl::Status AtomicFile::Append(const void* data, size_t bytes) {
  if (fd_ < 0)
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is committed already"));
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = write(fd_, next, bytes);
    if (count < 0) {
      if (errno == EINTR) continue;
      return SystemError("write", path_, errno);
    }
    next += count;
    bytes -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Commit() {
  if (fd_ < 0)
    return absl::FailedPreconditionError(absl::StrCat("'", path_, "' is committed already"));
  if (fsync(fd_) != 0) return SystemError("write", path_, errno);
  // The lock lasts until close: the name must not look abandoned before it is the real one.
  if (rename(temporary_.c_str(), path_.c_str()) != 0) return SystemError("write", path_, errno);
  const int fd = std::exchange(fd_, -1);
  if (close(fd) != 0 && errno != EINTR) return SystemError("write", path_, errno);
  return SyncFolder(path_);
}

bool IsTemporary(absl::string_view name) { return !NameBehind(name).empty(); }

void RemoveAbandoned(const std::string& folder) {
  RemoveUnlocked(folder, [](absl::string_view behind) { return !behind.empty(); });
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents) {
  SKEIN_ASSIGN_OR_RETURN(auto file, AtomicFile::Create(path));
  SKEIN_RETURN_IF_ERROR(file->Append(contents));
  return file->Commit();
}

absl::Status MakeFolder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return SystemError("make the folder", path, error.value());
  if (!std::filesystem::is_directory(path, error))
    return SystemError("make the folder", path, ENOTDIR);
  return absl::OkStatus();
}

uint64_t Hash64(const void* data, size_t bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

struct Hasher64::State {
  XXH3_state_t xxh;
};

Hasher64::Hasher64() : state_(std::make_unique<State>()) { XXH3_64bits_reset(&state_->xxh); }
Hasher64::~Hasher64() = default;
void Hasher64::Add(const void* data, size_t bytes) {
  XXH3_64bits_update(&state_->xxh, data, bytes);
}
uint64_t Hasher64::Hash() const { return XXH3_64bits_digest(&state_->xxh); }

}  // namespace skein::base
