#include "server/systemd_notify.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "server/log.h"

namespace skein::server {

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

void NotifyWatchdog() {
  const char* interval = std::getenv("WATCHDOG_USEC");
  if (interval != nullptr && interval[0] != 0) NotifySystemd("WATCHDOG=1");
}

}  // namespace skein::server
