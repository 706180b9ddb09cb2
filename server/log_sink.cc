#include "server/log_sink.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

namespace skein::server {

// A pipe that says it is writable takes PIPE_BUF bytes without waiting.
bool LogSink::TryWrite(absl::string_view text) {
  while (!text.empty()) {
    pollfd ready{fd_, POLLOUT, 0};
    if (poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) return false;
    const ssize_t n = write(fd_, text.data(), std::min<size_t>(text.size(), PIPE_BUF));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(static_cast<size_t>(n));
    in_line_ = !text.empty();
  }
  return true;
}

void LogSink::Write(absl::string_view line) {
  const std::lock_guard<std::mutex> lock(mu_);
  if ((in_line_ && !TryWrite("\n")) || !TryWrite(line)) {
    lost_.fetch_add(1, std::memory_order_relaxed);
  }
}

}  // namespace skein::server
