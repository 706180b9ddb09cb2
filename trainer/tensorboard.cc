#include "trainer/tensorboard.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace skein::trainer {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Protobuf wire format.
constexpr int kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5;

void Varint(std::string* out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out->push_back(static_cast<char>(value | 0x80));
  out->push_back(static_cast<char>(value));
}

void Tag(std::string* out, int field, int wire) {
  Varint(out, static_cast<uint64_t>(field << 3 | wire));
}

template <typename T>
void Fixed(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void Bytes(std::string* out, int field, const std::string& value) {
  Tag(out, field, kBytes);
  Varint(out, value.size());
  out->append(value);
}

// Event: wall_time = 1 (double), step = 2 (int64), file_version = 3 (string), summary = 5
// (Summary), session_log = 7 (SessionLog).
std::string EventHead(int64_t step) {
  std::string event;
  Tag(&event, 1, kFixed64);
  Fixed(&event, Now());
  Tag(&event, 2, kVarint);
  Varint(&event, static_cast<uint64_t>(step));
  return event;
}

// Summary: value = 1 (repeated Value); Value: tag = 1 (string), simple_value = 2 (float).
std::string SummaryValue(const std::string& tag, double number) {
  std::string value;
  Bytes(&value, 1, tag);
  Tag(&value, 2, kFixed32);
  Fixed(&value, static_cast<float>(number));
  return value;
}

// TensorBoard drops what it has read of this step and later ones. SessionLog: status = 1 (START =
// 1).
std::string SessionStart(int64_t step) {
  std::string session, event = EventHead(step);
  Tag(&session, 1, kVarint);
  Varint(&session, 1);
  Bytes(&event, 7, session);
  return event;
}

}  // namespace

uint32_t Crc32c(const void* data, size_t bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
      t[i] = crc;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  const uint8_t* p = static_cast<const uint8_t*>(data);
  for (size_t i = 0; i < bytes; ++i) crc = table[(crc ^ p[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

uint32_t MaskedCrc32c(const void* data, size_t bytes) {
  const uint32_t crc = Crc32c(data, bytes);
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

absl::StatusOr<std::unique_ptr<EventWriter>> EventWriter::Create(const std::string& folder,
                                                                 int64_t first_step) {
  const std::string path = absl::StrCat(folder, "/events.out.tfevents.",
                                        static_cast<int64_t>(Now()), ".skein.", getpid());
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr) return absl::InternalError(absl::StrCat(path, ": ", std::strerror(errno)));
  std::unique_ptr<EventWriter> writer(new EventWriter(path, file));
  std::string version = EventHead(0);
  Bytes(&version, 3, "brain.Event:2");
  SKEIN_RETURN_IF_ERROR(writer->Write(version));
  SKEIN_RETURN_IF_ERROR(writer->Write(SessionStart(first_step + 1)));
  return writer;
}

EventWriter::EventWriter(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}

EventWriter::~EventWriter() { std::fclose(file_); }

absl::Status EventWriter::Scalars(int64_t step,
                                  const std::vector<std::pair<std::string, double>>& values) {
  std::string summary, event = EventHead(step);
  for (const auto& [tag, number] : values) Bytes(&summary, 1, SummaryValue(tag, number));
  Bytes(&event, 5, summary);
  return Write(event);
}

absl::Status EventWriter::Write(const std::string& event) {
  std::string record;
  Fixed<uint64_t>(&record, event.size());
  Fixed(&record, MaskedCrc32c(record.data(), record.size()));
  record += event;
  Fixed(&record, MaskedCrc32c(event.data(), event.size()));
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() ||
      std::fflush(file_) != 0) {
    return absl::ResourceExhaustedError(absl::StrCat(path_, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

}  // namespace skein::trainer
