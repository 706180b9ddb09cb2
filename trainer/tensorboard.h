#pragma once
// TensorBoard event files: TFRecords of Event messages. Only scalars are written, so the few fields
// are encoded by hand: the trainer then needs no protobuf beside LibTorch, whose copies of it
// clash.

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace skein::trainer {

class EventWriter {
 public:
  // A new file in `folder`, named so that TensorBoard finds it. It forgets what older files there
  // say of steps after `first_step`.
  static absl::StatusOr<std::unique_ptr<EventWriter>> Create(const std::string& folder,
                                                             int64_t first_step);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;
  absl::Status Scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);

 private:
  EventWriter(std::string path, std::FILE* file);
  absl::Status Write(const std::string& event);
  const std::string path_;
  std::FILE* const file_;
};

// CRC-32C, and the masked form of TFRecord.
uint32_t Crc32c(const void* data, size_t bytes);
uint32_t MaskedCrc32c(const void* data, size_t bytes);

}  // namespace skein::trainer
