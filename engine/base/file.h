#pragma once
// Files: read-only mappings and atomic writes. Errors name the path and what to do.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::base {

// Says that a file is still the one that it was without reading it: whoever writes to it, or puts
// another in its place, changes one of these (the time of change cannot be set by programs).
struct FileIdentity {
  uint64_t inode = 0;
  uint64_t bytes = 0;
  int64_t modified = 0, changed = 0;  // nanoseconds of the system's clock

  bool operator==(const FileIdentity&) const = default;
};

absl::StatusOr<FileIdentity> Identify(const std::string& path);

// A read-only memory mapping of a whole regular file. Thread-safe once made.
class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  const uint8_t* data() const { return data_; }
  uint64_t size() const { return size_; }
  const std::string& path() const { return path_; }
  const FileIdentity& identity() const { return identity_; }

  // Of bytes inside the mapping. Expect: the system begins to read them. Release: they no longer
  // count as this process's memory; reading them again works and takes a little longer.
  void Expect(const uint8_t* data, uint64_t bytes) const;
  void Release(const uint8_t* data, uint64_t bytes) const;

 private:
  MappedFile(std::string path, const uint8_t* data, const FileIdentity& identity);
  const std::string path_;
  const uint8_t* const data_;
  const uint64_t size_;
  const FileIdentity identity_;
};

// A regular file open for reading anywhere in it. Thread-safe once made. Unlike a mapping it takes
// a file that becomes shorter meanwhile for an error.
class OpenFile {
 public:
  static absl::StatusOr<std::unique_ptr<OpenFile>> Open(const std::string& path);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  uint64_t size() const { return size_; }  // as it was opened
  // All of the bytes, or an error: DATA_LOSS where the file ends before.
  absl::Status Read(uint64_t offset, void* out, size_t bytes) const;

 private:
  OpenFile(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  const std::string path_;
  const int fd_;
  const uint64_t size_;
};

absl::StatusOr<std::string> ReadFile(const std::string& path);

// Writes a file so that a reader sees the old one or the whole new one, whatever happens in
// between: a temporary file beside it, fsync, rename, fsync of the folder. Not committed (or
// destroyed early): the temporary is removed.
class AtomicFile {
 public:
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  // RESOURCE_EXHAUSTED when the disk is full.
  absl::Status Append(const void* data, size_t bytes);
  absl::Status Append(absl::string_view data) { return Append(data.data(), data.size()); }
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, int fd);
  const std::string path_;
  const std::string temporary_;
  int fd_;
};

// Whether a file of this name, without its folder, is or was the temporary of an AtomicFile.
bool IsTemporary(absl::string_view name);

// Removes from a folder the temporaries of writers that were killed, not those of living ones.
// Failures do not matter: they are only in the way of the disk's space. (AtomicFile does this for
// its own name.)
void RemoveAbandoned(const std::string& folder);

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents);

// mkdir -p.
absl::Status MakeFolder(const std::string& path);

// 64-bit hash (XXH3) for fingerprints and checksums; not cryptographic.
uint64_t Hash64(const void* data, size_t bytes, uint64_t seed = 0);

// The same hash of bytes that come piece by piece.
class Hasher64 {
 public:
  Hasher64();
  ~Hasher64();
  Hasher64(const Hasher64&) = delete;
  Hasher64& operator=(const Hasher64&) = delete;
  void Add(const void* data, size_t bytes);
  uint64_t Hash() const;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace skein::base
