#include "engine/checkpoint/zip_writer.h"

#include <algorithm>

#include "engine/base/check.h"
#include "engine/checkpoint/bytes.h"
#include "engine/checkpoint/crc32.h"
#include "engine/checkpoint/zip_format.h"

namespace skein::engine {
namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint16_t kPaddingExtraId = 0x4246;  // "FB", as PyTorch pads
constexpr uint16_t kVersionPlain = 20, kVersionZip64 = 45;
constexpr uint16_t kDate = (1 << 5) | 1;  // 1 January 1980: equal weights give equal files

void Append16(uint16_t value, std::string* out) { AppendLittleEndian(value, out); }
void Append32(uint32_t value, std::string* out) { AppendLittleEndian(value, out); }
void Append64(uint64_t value, std::string* out) { AppendLittleEndian(value, out); }

// Version, flags, method, time, date, checksum: the part that both headers share.
void AppendCommon(bool wide, uint32_t crc32, std::string* out) {
  Append16(wide ? kVersionZip64 : kVersionPlain, out);
  Append16(zip::kFlagUtf8, out);
  Append16(0, out);
  Append16(0, out);
  Append16(kDate, out);
  Append32(crc32, out);
}

}  // namespace

void ZipWriter::AppendNarrow(uint64_t number, std::string* out) const {
  Append32(Wide(number) ? 0xffffffff : static_cast<uint32_t>(number), out);
}

std::string ZipWriter::LocalHeader(absl::string_view name, uint64_t size, uint32_t crc32) const {
  std::string extra;
  if (Wide(size)) {
    Append16(zip::kZip64ExtraId, &extra);
    Append16(16, &extra);
    Append64(size, &extra);
    Append64(size, &extra);
  }
  const uint64_t unpadded = offset_ + zip::kLocalBytes + name.size() + extra.size() + 4;
  const uint64_t padding = (kAlignment - unpadded % kAlignment) % kAlignment;
  Append16(kPaddingExtraId, &extra);
  Append16(static_cast<uint16_t>(padding), &extra);
  extra.append(padding, 'Z');

  std::string header;
  Append32(zip::kLocalSignature, &header);
  AppendCommon(Wide(size), crc32, &header);
  AppendNarrow(size, &header);
  AppendNarrow(size, &header);
  Append16(static_cast<uint16_t>(name.size()), &header);
  Append16(static_cast<uint16_t>(extra.size()), &header);
  header.append(name.data(), name.size());
  return header + extra;
}

std::string ZipWriter::CentralHeader(absl::string_view name, uint64_t size, uint32_t crc32) const {
  std::string wide;
  if (Wide(size)) {
    Append64(size, &wide);
    Append64(size, &wide);
  }
  if (Wide(offset_)) Append64(offset_, &wide);
  std::string extra;
  if (!wide.empty()) {
    Append16(zip::kZip64ExtraId, &extra);
    Append16(static_cast<uint16_t>(wide.size()), &extra);
    extra += wide;
  }
  std::string header;
  Append32(zip::kCentralSignature, &header);
  Append16(wide.empty() ? kVersionPlain : kVersionZip64, &header);  // made by
  AppendCommon(!wide.empty(), crc32, &header);
  AppendNarrow(size, &header);
  AppendNarrow(size, &header);
  Append16(static_cast<uint16_t>(name.size()), &header);
  Append16(static_cast<uint16_t>(extra.size()), &header);
  Append16(0, &header);  // comment
  Append16(0, &header);  // disk
  Append16(0, &header);  // internal attributes
  Append32(0, &header);  // external attributes
  AppendNarrow(offset_, &header);
  header.append(name.data(), name.size());
  return header + extra;
}

absl::Status ZipWriter::Append(absl::string_view bytes) {
  offset_ += bytes.size();
  return file_->Append(bytes);
}

absl::Status ZipWriter::Add(absl::string_view name, absl::string_view contents) {
  const uint32_t crc32 = Crc32(contents.data(), contents.size());
  directory_ += CentralHeader(name, contents.size(), crc32);
  ++entries_;
  SKEIN_RETURN_IF_ERROR(Append(LocalHeader(name, contents.size(), crc32)));
  return Append(contents);
}

absl::Status ZipWriter::Finish() {
  const uint64_t directory_offset = offset_, directory_size = directory_.size();
  SKEIN_RETURN_IF_ERROR(Append(directory_));
  std::string end;
  if (entries_ >= 0xffff || Wide(directory_offset) || Wide(directory_size)) {
    Append32(zip::kEnd64Signature, &end);
    Append64(zip::kEnd64Bytes - 12, &end);
    Append16(kVersionZip64, &end);
    Append16(kVersionZip64, &end);
    Append32(0, &end);
    Append32(0, &end);
    Append64(entries_, &end);
    Append64(entries_, &end);
    Append64(directory_size, &end);
    Append64(directory_offset, &end);
    Append32(zip::kLocator64Signature, &end);
    Append32(0, &end);
    Append64(offset_, &end);
    Append32(1, &end);
  }
  const auto narrow_entries = static_cast<uint16_t>(std::min<uint64_t>(entries_, 0xffff));
  Append32(zip::kEndSignature, &end);
  Append16(0, &end);
  Append16(0, &end);
  Append16(narrow_entries, &end);
  Append16(narrow_entries, &end);
  AppendNarrow(directory_size, &end);
  AppendNarrow(directory_offset, &end);
  Append16(0, &end);
  return Append(end);
}

}  // namespace skein::engine
