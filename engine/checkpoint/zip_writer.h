#pragma once
// Writes a zip of stored entries as PyTorch lays it out: contents at multiples of 64 bytes, zip64
// only where a number needs it.

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "engine/base/file.h"

namespace skein::engine {

class ZipWriter {
 public:
  // Numbers of `narrow_limit` and more are written with 64 bits; tests lower it.
  explicit ZipWriter(base::AtomicFile* file, uint64_t narrow_limit = 0xffffffff)
      : file_(file), narrow_limit_(narrow_limit) {}
  absl::Status Add(absl::string_view name, absl::string_view contents);
  // The directory. Nothing may follow; the caller commits the file.
  absl::Status Finish();

 private:
  bool Wide(uint64_t number) const { return number >= narrow_limit_; }
  void AppendNarrow(uint64_t number, std::string* out) const;
  std::string LocalHeader(absl::string_view name, uint64_t size, uint32_t crc32) const;
  std::string CentralHeader(absl::string_view name, uint64_t size, uint32_t crc32) const;
  absl::Status Append(absl::string_view bytes);

  base::AtomicFile* const file_;
  const uint64_t narrow_limit_;
  uint64_t offset_ = 0;
  uint64_t entries_ = 0;
  std::string directory_;
};

}  // namespace skein::engine
