#include "server/systemd_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/clock.h"
#include "server/log.h"

namespace skein::server {
namespace {

constexpr int64_t kAskEvery = 1'000'000'000;  // nanoseconds

}  // namespace

void NotifySystemd(absl::string_view state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || path[0] == 0) return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof(address.sun_path)) {
    LogLine(LogLevel::kWarning, "NOTIFY_SOCKET is too long");
    return;
  }
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = 0;  // abstract socket
  const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  if (fd < 0 || sendto(fd, state.data(), state.size(), MSG_NOSIGNAL,
                       reinterpret_cast<const sockaddr*>(&address), size) < 0) {
    LogLine(LogLevel::kWarning, "cannot notify systemd").With("error", std::strerror(errno));
  }
  if (fd >= 0) close(fd);
}

void AskForMoreTime(absl::Duration more) {
  static std::atomic<int64_t> next{0};
  const int64_t now = absl::ToUnixNanos(engine::MonotonicNow());
  int64_t due = next.load();
  if (now < due || !next.compare_exchange_strong(due, now + kAskEvery)) return;
  NotifySystemd(absl::StrCat("EXTEND_TIMEOUT_USEC=", absl::ToInt64Microseconds(more)));
}

void NotifyWatchdog() {
  const char* interval = std::getenv("WATCHDOG_USEC");
  if (interval != nullptr && interval[0] != 0) NotifySystemd("WATCHDOG=1");
}

}  // namespace skein::server
