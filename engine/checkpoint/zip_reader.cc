#include "engine/checkpoint/zip_reader.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/zip_format.h"

namespace skein::engine {
namespace {

absl::Status Damaged(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("the zip inside the .pth is damaged or cut off: ", what));
}

struct Directory {
  uint64_t offset = 0, size = 0, entries = 0;
};

struct CentralEntry {
  absl::string_view name;
  uint16_t flags = 0, method = 0;
  uint32_t crc32 = 0;
  uint64_t packed_size = 0, size = 0, local_offset = 0;
};

uint16_t U16(absl::string_view data, uint64_t at) {
  return LoadLittleEndian<uint16_t>(data.data() + at);
}
uint32_t U32(absl::string_view data, uint64_t at) {
  return LoadLittleEndian<uint32_t>(data.data() + at);
}
uint64_t U64(absl::string_view data, uint64_t at) {
  return LoadLittleEndian<uint64_t>(data.data() + at);
}
bool HasSignature(absl::string_view data, uint64_t at, uint64_t size, uint32_t signature) {
  return InRange(at, size, data.size()) && U32(data, at) == signature;
}

// The end record is the last thing in the file but for its own comment.
absl::StatusOr<uint64_t> FindEndRecord(absl::string_view data) {
  if (data.size() >= zip::kEndBytes) {
    const uint64_t last = data.size() - zip::kEndBytes;
    const uint64_t first = last > 0xffff ? last - 0xffff : 0;
    for (uint64_t at = last + 1; at-- > first;) {
      if (U32(data, at) == zip::kEndSignature && U16(data, at + 20) == last - at) return at;
    }
  }
  return Damaged("no directory at the end of the file");
}

// A 16- or 32-bit field says the same as its 64-bit one, or that it does not fit.
bool Agrees(uint64_t narrow, uint64_t marker, uint64_t wide) {
  return narrow == wide || narrow == marker;
}

absl::StatusOr<Directory> ReadEndRecords(absl::string_view data) {
  SKEIN_ASSIGN_OR_RETURN(const uint64_t end, FindEndRecord(data));
  Directory directory{U32(data, end + 16), U32(data, end + 12), U16(data, end + 10)};
  uint64_t directory_end = end;
  if (U16(data, end + 4) != 0 || U16(data, end + 6) != 0 ||
      U16(data, end + 8) != U16(data, end + 10)) {
    return Damaged("an archive in several parts");
  }
  if (end >= zip::kLocator64Bytes &&
      U32(data, end - zip::kLocator64Bytes) == zip::kLocator64Signature) {
    const uint64_t locator = end - zip::kLocator64Bytes;
    const uint64_t end64 = U64(data, locator + 8);
    if (!HasSignature(data.substr(0, locator), end64, zip::kEnd64Bytes, zip::kEnd64Signature) ||
        U64(data, end64 + 4) != locator - end64 - 12) {
      return Damaged("the zip64 end record");
    }
    const Directory wide{U64(data, end64 + 48), U64(data, end64 + 40), U64(data, end64 + 32)};
    if (U32(data, end64 + 16) != 0 || U32(data, end64 + 20) != 0 ||
        U64(data, end64 + 24) != wide.entries || !Agrees(directory.entries, 0xffff, wide.entries) ||
        !Agrees(directory.size, 0xffffffff, wide.size) ||
        !Agrees(directory.offset, 0xffffffff, wide.offset)) {
      return Damaged("the two end records disagree");
    }
    directory = wide;
    directory_end = end64;
  }
  if (!InRange(directory.offset, directory.size, data.size()) ||
      directory.offset + directory.size != directory_end) {
    return Damaged("the directory is not where the end record says");
  }
  return directory;
}

// Replaces the fields that hold 0xffffffff by those of the zip64 extra field.
absl::Status ApplyZip64(absl::string_view extra, CentralEntry* entry) {
  uint64_t* wide[] = {&entry->size, &entry->packed_size, &entry->local_offset};
  std::vector<uint64_t*> missing;
  for (uint64_t* field : wide) {
    if (*field == 0xffffffff) missing.push_back(field);
  }
  for (uint64_t at = 0; InRange(at, 4, extra.size()); at += 4 + U16(extra, at + 2)) {
    if (U16(extra, at) != zip::kZip64ExtraId) continue;
    const uint64_t size = U16(extra, at + 2);
    if (!InRange(at + 4, size, extra.size()) || size < 8 * missing.size()) break;
    for (size_t i = 0; i < missing.size(); ++i) *missing[i] = U64(extra, at + 4 + 8 * i);
    return absl::OkStatus();
  }
  if (missing.empty()) return absl::OkStatus();
  return Damaged(absl::StrCat("the 64-bit sizes of the entry ", Quoted(entry->name)));
}

absl::StatusOr<CentralEntry> ReadCentral(absl::string_view directory, uint64_t* at) {
  const uint64_t start = *at;
  if (!HasSignature(directory, start, zip::kCentralBytes, zip::kCentralSignature)) {
    return Damaged("an entry of the directory");
  }
  const uint64_t name = U16(directory, start + 28), extra = U16(directory, start + 30),
                 comment = U16(directory, start + 32);
  if (!InRange(start + zip::kCentralBytes, name + extra + comment, directory.size())) {
    return Damaged("an entry of the directory");
  }
  CentralEntry entry;
  entry.flags = U16(directory, start + 8);
  entry.method = U16(directory, start + 10);
  entry.crc32 = U32(directory, start + 16);
  entry.packed_size = U32(directory, start + 20);
  entry.size = U32(directory, start + 24);
  entry.local_offset = U32(directory, start + 42);
  entry.name = directory.substr(start + zip::kCentralBytes, name);
  if (U16(directory, start + 34) != 0) return Damaged("an archive in several parts");
  SKEIN_RETURN_IF_ERROR(
      ApplyZip64(directory.substr(start + zip::kCentralBytes + name, extra), &entry));
  *at = start + zip::kCentralBytes + name + extra + comment;
  return entry;
}

absl::Status CheckCentral(const CentralEntry& entry) {
  if (entry.flags & zip::kFlagEncrypted) {
    return absl::UnimplementedError(
        absl::StrCat("the entry ", Quoted(entry.name), " of the .pth is encrypted"));
  }
  if (entry.method == 0 && entry.packed_size != entry.size) {
    return Damaged(absl::StrCat("the sizes of the entry ", Quoted(entry.name)));
  }
  if (entry.name.empty() || entry.name.find('\0') != absl::string_view::npos) {
    return Damaged(absl::StrCat("the name of the entry ", Quoted(entry.name)));
  }
  return absl::OkStatus();
}

// The record after the contents when the sizes were not known before them; its signature is
// optional and its sizes have 32 or 64 bits. Returns its length.
absl::StatusOr<uint64_t> CheckDescriptor(absl::string_view data, uint64_t at,
                                         const CentralEntry& entry) {
  for (const uint64_t signature : {4, 0}) {
    if (signature && !HasSignature(data, at, 4, zip::kDescriptorSignature)) continue;
    const uint64_t crc = at + signature;
    if (InRange(crc, 20, data.size()) && U32(data, crc) == entry.crc32 &&
        U64(data, crc + 4) == entry.packed_size && U64(data, crc + 12) == entry.size) {
      return signature + 20;
    }
    if (InRange(crc, 12, data.size()) && U32(data, crc) == entry.crc32 &&
        U32(data, crc + 4) == entry.packed_size && U32(data, crc + 8) == entry.size) {
      return signature + 12;
    }
  }
  return Damaged(absl::StrCat("the data descriptor of the entry ", Quoted(entry.name)));
}

// `data` ends where the directory starts. Sets `end` to the first byte after the entry.
absl::StatusOr<ZipEntry> ReadLocal(absl::string_view data, const CentralEntry& entry,
                                   uint64_t* end) {
  const uint64_t at = entry.local_offset;
  const auto damaged = [&] {
    return Damaged(absl::StrCat("the local header of the entry ", Quoted(entry.name)));
  };
  if (!HasSignature(data, at, zip::kLocalBytes, zip::kLocalSignature)) return damaged();
  const uint64_t name = U16(data, at + 26), extra = U16(data, at + 28);
  if (!InRange(at + zip::kLocalBytes, name + extra, data.size())) return damaged();
  const uint64_t start = at + zip::kLocalBytes + name + extra;
  if (data.substr(at + zip::kLocalBytes, name) != entry.name || U16(data, at + 6) != entry.flags ||
      U16(data, at + 8) != entry.method) {
    return damaged();
  }
  if (!InRange(start, entry.packed_size, data.size())) {
    return Damaged(absl::StrCat("the entry ", Quoted(entry.name), " reaches past its end"));
  }
  *end = start + entry.packed_size;
  if (entry.flags & zip::kFlagDescriptor) {
    SKEIN_ASSIGN_OR_RETURN(const uint64_t bytes, CheckDescriptor(data, *end, entry));
    *end += bytes;
  } else {
    CentralEntry local;
    local.name = entry.name;
    local.packed_size = U32(data, at + 18);
    local.size = U32(data, at + 22);
    SKEIN_RETURN_IF_ERROR(ApplyZip64(data.substr(start - extra, extra), &local));
    if (local.size != entry.size || local.packed_size != entry.packed_size ||
        U32(data, at + 14) != entry.crc32) {
      return damaged();
    }
  }
  return ZipEntry{entry.name, data.substr(start, entry.packed_size), entry.method != 0,
                  entry.crc32};
}

}  // namespace

absl::StatusOr<std::vector<ZipEntry>> ReadZip(absl::string_view data) {
  SKEIN_ASSIGN_OR_RETURN(const Directory where, ReadEndRecords(data));
  const absl::string_view directory = data.substr(where.offset, where.size);
  if (where.entries > where.size / zip::kCentralBytes) return Damaged("the number of entries");

  std::vector<ZipEntry> entries;
  entries.reserve(where.entries);
  std::vector<std::pair<uint64_t, uint64_t>> extents;
  std::unordered_set<std::string> names;
  uint64_t at = 0;
  for (uint64_t i = 0; i < where.entries; ++i) {
    SKEIN_ASSIGN_OR_RETURN(const CentralEntry central, ReadCentral(directory, &at));
    SKEIN_RETURN_IF_ERROR(CheckCentral(central));
    if (!names.emplace(central.name).second) {
      return Damaged(absl::StrCat("two entries are called ", Quoted(central.name)));
    }
    uint64_t end = 0;
    SKEIN_ASSIGN_OR_RETURN(auto entry, ReadLocal(data.substr(0, where.offset), central, &end));
    extents.emplace_back(central.local_offset, end);
    entries.push_back(entry);
  }
  if (at != directory.size()) return Damaged("the length of the directory");
  std::sort(extents.begin(), extents.end());
  for (size_t i = 1; i < extents.size(); ++i) {
    if (extents[i].first < extents[i - 1].second) return Damaged("entries overlap");
  }
  return entries;
}

}  // namespace skein::engine
