#include "server/listener.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "server/log.h"

namespace skein::server {
namespace {

constexpr char kUnix[] = "unix:";
// Connections that the kernel completes before we accept them.
constexpr int kBacklog = 4096;
constexpr absl::Duration kWarnAgain = absl::Seconds(10);
// How long the listener rests when not even the reserved descriptor helps.
constexpr absl::Duration kRest = absl::Milliseconds(100);

std::string ErrorText(int error) { return std::strerror(error); }

int OpenReserve() { return open("/dev/null", O_RDONLY | O_CLOEXEC); }

void Close(int* fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

uint16_t PortOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  if (address.ss_family == AF_INET)
    return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6)
    return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
  return 0;
}

void SetPort(sockaddr* address, uint16_t port) {
  if (address->sa_family == AF_INET)
    reinterpret_cast<sockaddr_in*>(address)->sin_port = htons(port);
  if (address->sa_family == AF_INET6)
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = htons(port);
}

// A socket file that nobody listens on is what a killed daemon leaves behind.
void RemoveDeadSocket(const sockaddr_un& address) {
  struct stat info {};
  if (stat(address.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode)) return;
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const bool dead =
      connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0 &&
      errno == ECONNREFUSED;
  close(fd);
  if (dead) unlink(address.sun_path);
}

}  // namespace

bool SplitHostPort(absl::string_view address, absl::string_view* host, absl::string_view* port) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return false;
  *host = address.substr(0, colon);
  *port = address.substr(colon + 1);
  if (absl::StartsWith(*host, "[") && absl::EndsWith(*host, "]")) {
    *host = host->substr(1, host->size() - 2);
  } else if (absl::StrContains(*host, ":")) {
    return false;  // a v6 address wants brackets, or its end would be taken for the port
  }
  int32_t number = 0;
  return !host->empty() && absl::SimpleAtoi(*port, &number) && number >= 0 && number <= 65535;
}

bool IsAddress(absl::string_view address) {
  absl::string_view host, port;
  return absl::StartsWith(address, kUnix) || SplitHostPort(address, &host, &port);
}

bool IsLoopback(absl::string_view address) {
  if (absl::StartsWith(address, kUnix)) return true;
  absl::string_view host, port;
  if (!SplitHostPort(address, &host, &port)) return false;
  if (host == "localhost") return true;
  addrinfo hints{};
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (getaddrinfo(std::string(host).c_str(), nullptr, &hints, &found) != 0) return false;
  bool loopback = false;
  if (found->ai_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(found->ai_addr);
    loopback = ntohl(v4->sin_addr.s_addr) >> 24 == 127;
  } else if (found->ai_family == AF_INET6) {
    loopback =
        IN6_IS_ADDR_LOOPBACK(&reinterpret_cast<const sockaddr_in6*>(found->ai_addr)->sin6_addr);
  }
  freeaddrinfo(found);
  return loopback;
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(const std::string& address,
                                                         absl::string_view key) {
  std::unique_ptr<Listener> out(new Listener());
  absl::string_view host, port;
  absl::Status status;
  if (absl::StartsWith(address, kUnix)) {
    status = out->BindUnix(address.substr(sizeof(kUnix) - 1));
    out->address_ = address;
  } else if (SplitHostPort(address, &host, &port)) {
    status = out->BindTcp(host, port);
    if (status.ok()) {
      out->address_ =
          absl::StrCat(address.substr(0, address.rfind(':') + 1), PortOf(out->sockets_.front()));
    }
  } else {
    status = absl::InvalidArgumentError("expected host:port, [v6 address]:port or unix:/path");
  }
  if (!status.ok()) {
    return absl::Status(
        status.code(), absl::StrCat(key, ": cannot listen on '", address, "': ", status.message()));
  }
  return out;
}

absl::Status Listener::BindUnix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the path must have 1 to ", sizeof(address.sun_path) - 1, " bytes"));
  }
  std::memcpy(address.sun_path, path.c_str(), path.size());
  RemoveDeadSocket(address);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (const int error = ListenOn(fd, &address, sizeof(address)); error != 0) {
    return absl::UnavailableError(ErrorText(error));
  }
  unix_path_ = path;
  return absl::OkStatus();
}

absl::Status Listener::BindTcp(absl::string_view host, absl::string_view port) {
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  int error = getaddrinfo(std::string(host).c_str(), std::string(port).c_str(), &hints, &found);
  if (error != 0) return absl::UnavailableError(gai_strerror(error));
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    // "localhost:0" has two addresses and wants one port.
    if (!sockets_.empty()) SetPort(a->ai_addr, PortOf(sockets_.front()));
    const int fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    error = ListenOn(fd, a->ai_addr, a->ai_addrlen);
    // A name may have a v6 address on a machine without v6; one address must do.
    if (error != 0 && error != EADDRNOTAVAIL && error != EAFNOSUPPORT) break;
  }
  freeaddrinfo(found);
  if (sockets_.empty() || error == EADDRINUSE || error == EACCES) {
    return absl::UnavailableError(ErrorText(error));
  }
  return absl::OkStatus();
}

int Listener::ListenOn(int fd, const void* address, uint32_t size) {
  if (fd < 0) return errno;
  if (bind(fd, static_cast<const sockaddr*>(address), size) != 0 || listen(fd, kBacklog) != 0) {
    const int error = errno;
    close(fd);
    return error;
  }
  sockets_.push_back(fd);
  return 0;
}

Listener::~Listener() { Stop(); }

void Listener::Start(ConnectionTable* table, RefusedConnections* refused,
                     std::function<void(int, int)> accept) {
  table_ = table;
  refused_ = refused;
  accept_ = std::move(accept);
  wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  SKEIN_CHECK(wake_ >= 0);
  reserve_ = OpenReserve();
  thread_ = std::thread([this] { Loop(); });
}

void Listener::Stop() {
  if (thread_.joinable()) {
    SKEIN_CHECK(eventfd_write(wake_, 1) == 0);
    thread_.join();
  }
  for (int& fd : sockets_) Close(&fd);
  sockets_.clear();
  if (!unix_path_.empty()) unlink(unix_path_.c_str());
  unix_path_.clear();
  Close(&wake_);
  Close(&reserve_);
}

void Listener::Loop() {
  std::vector<pollfd> wait;
  for (const int fd : sockets_) wait.push_back({fd, POLLIN, 0});
  wait.push_back({wake_, POLLIN, 0});
  while (true) {
    if (poll(wait.data(), wait.size(), -1) < 0) continue;  // EINTR
    if (wait.back().revents != 0) return;
    for (const pollfd& ready : wait) {
      // A few at a time, so that one busy address does not starve another.
      for (int i = 0; i < 64 && ready.revents != 0 && AcceptOne(ready.fd); ++i) {
      }
    }
  }
}

bool Listener::AcceptOne(int listener) {
  const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) {
    // Anything else is the fate of that one connection: it was reset before we came.
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      OutOfDescriptors(listener, errno);
    }
    return errno == EINTR || errno == ECONNABORTED;
  }
  if (!table_->Add(fd)) {
    refused_->limit.fetch_add(1);  // first, so that who sees the end finds it counted
    close(fd);
    if (absl::Now() - last_warning_ >= kWarnAgain) {
      last_warning_ = absl::Now();
      LogLine(LogLevel::kWarning, "too many connections: new ones are refused")
          .With("limit", table_->limit())
          .With("refused", refused_->limit.load());
    }
    return true;
  }
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // fails on a unix socket
  accept_(listener, fd);
  return true;
}

// Takes the connection out of the queue and closes it, so that the client learns at once and the
// queue does not keep the loop spinning.
void Listener::OutOfDescriptors(int listener, int error) {
  Close(&reserve_);
  int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  const bool refused = fd >= 0;
  if (refused) refused_->descriptors.fetch_add(1);
  Close(&fd);
  reserve_ = OpenReserve();
  if (absl::Now() - last_warning_ >= kWarnAgain) {
    last_warning_ = absl::Now();
    LogLine(LogLevel::kError, "cannot accept connections")
        .With("error", ErrorText(error))
        .With("refused", refused_->descriptors.load());
  }
  if (!refused) absl::SleepFor(kRest);
}

}  // namespace skein::server
