#pragma once
// The part of zip that PyTorch writes: entries, zip64, data descriptors. Everything a local
// header says is checked against the central directory, and entries must not overlap, so that the
// file means the same to every reader.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace skein::engine {

struct ZipEntry {
  absl::string_view name;      // points into the file
  absl::string_view contents;  // points into the file
  bool compressed = false;     // then `contents` are not those of the file that was packed
  uint32_t crc32 = 0;          // 0 also where the writer left it out, as PyTorch can be told to do
};

// In the order of the central directory, names distinct. `data` must outlive the result.
absl::StatusOr<std::vector<ZipEntry>> ReadZip(absl::string_view data);

}  // namespace skein::engine
