#pragma once
// Where log lines go: a file descriptor that may be full, broken or read by nobody. A line that
// cannot leave at once is lost and counted; logging never waits and never fails.

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"

namespace skein::server {

// Thread-safe.
class LogSink {
 public:
  explicit LogSink(int fd) : fd_(fd) {}

  void Write(absl::string_view line);  // with its newline
  // Since the start.
  int64_t lost() const { return lost_.load(std::memory_order_relaxed); }

 private:
  // Whether all of it has left.
  bool TryWrite(absl::string_view text) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int fd_;
  std::atomic<int64_t> lost_{0};
  std::mutex mu_;
  bool in_line_ ABSL_GUARDED_BY(mu_) = false;  // the last line left only in part
};

}  // namespace skein::server
