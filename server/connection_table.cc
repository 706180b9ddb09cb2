#include "server/connection_table.h"

#include <arpa/inet.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/log.h"

namespace skein::server {
namespace {

// 0: no such descriptor.
ino_t InodeOf(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 ? info.st_ino : 0;
}

// Who is at the other end, as gRPC writes it; empty for a unix socket, whose clients have no names.
std::string PeerOf(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof(address);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) return "";
  char text[INET6_ADDRSTRLEN];
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    if (inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text)) == nullptr) return "";
    return absl::StrCat("ipv4:", text, ":", ntohs(v4.sin_port));
  }
  if (address.ss_family != AF_INET6) return "";
  const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
  if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
    if (inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], text, sizeof(text)) == nullptr) return "";
    return absl::StrCat("ipv4:", text, ":", ntohs(v6.sin6_port));
  }
  if (inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text)) == nullptr) return "";
  return absl::StrCat("ipv6:%5B", text, "%5D:", ntohs(v6.sin6_port));
}

}  // namespace

bool ConnectionTable::Add(int fd) {
  const ino_t inode = InodeOf(fd);
  std::string peer = PeerOf(fd);
  absl::MutexLock lock(&mu_);
  if (fd >= static_cast<int>(connections_.size())) connections_.resize(fd + 1);
  // The descriptor was given out again, so what had it before is gone.
  Forget(&connections_[fd]);
  const absl::Time now = absl::Now();
  if (count_ >= limits_.connections && now - swept_ >= kLookAgain) Sweep(now);
  if (count_ >= limits_.connections) return false;
  ++count_;
  if (!peer.empty()) {
    absl::MutexLock calls_lock(&calls_mu_);
    ++calls_[peer].connections;
  }
  connections_[fd] = {inode, std::move(peer), 0, {}};
  return true;
}

void ConnectionTable::Forget(Connection* connection) {
  if (connection->inode == 0) return;
  --count_;
  if (!connection->peer.empty()) {
    absl::MutexLock lock(&calls_mu_);
    const auto it = calls_.find(connection->peer);
    if (--it->second.connections == 0 && it->second.open == 0) calls_.erase(it);
  }
  *connection = Connection();
}

int64_t ConnectionTable::Count() {
  absl::MutexLock lock(&mu_);
  Sweep(absl::Now());
  return count_;
}

std::shared_ptr<void> ConnectionTable::BeginCall(std::string peer) {
  int64_t open = 0;
  {
    absl::MutexLock lock(&calls_mu_);
    Calls& calls = calls_[peer];
    ++calls.events;
    open = ++calls.open;
  }
  if (open == limits_.calls + 1 && Abort(peer)) {
    aborted_.fetch_add(1);
    LogLine(LogLevel::kWarning, "a client resets calls faster than they end: it is disconnected")
        .With("peer", peer)
        .With("calls", open);
  }
  struct Lease {
    ConnectionTable* table;
    std::string peer;
    ~Lease() { table->EndCall(peer); }
  };
  return std::shared_ptr<Lease>(new Lease{this, std::move(peer)});
}

void ConnectionTable::RequestCame(const std::string& peer) {
  absl::MutexLock lock(&calls_mu_);
  const auto it = calls_.find(peer);
  if (it != calls_.end()) ++it->second.events;
}

void ConnectionTable::EndCall(const std::string& peer) {
  absl::MutexLock lock(&calls_mu_);
  const auto it = calls_.find(peer);
  ++it->second.events;
  if (--it->second.open == 0 && it->second.connections == 0) calls_.erase(it);
}

ConnectionTable::Calls ConnectionTable::CallsOf(const std::string& peer) {
  absl::MutexLock lock(&calls_mu_);
  const auto it = calls_.find(peer);
  return it == calls_.end() ? Calls() : it->second;
}

bool ConnectionTable::Abort(const std::string& peer) {
  absl::MutexLock lock(&mu_);
  for (size_t fd = 0; fd < connections_.size(); ++fd) {
    if (connections_[fd].inode == 0 || connections_[fd].peer != peer) continue;
    if (AbortIf(static_cast<int>(fd), peer)) return true;
  }
  return false;
}

bool ConnectionTable::AbortIf(int fd, const std::string& peer) {
  if (PeerOf(fd) != peer) return false;
  // Dissolves the connection and throws away what has come and was not read; shutdown() would
  // leave that to be read. The descriptor stays gRPC's, which finds it broken.
  const sockaddr nobody{AF_UNSPEC, {}};
  return connect(fd, &nobody, sizeof(nobody)) == 0;
}

bool ConnectionTable::ReadTraffic(int fd, Traffic* traffic) {
  tcp_info info{};
  socklen_t size = sizeof(info);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return false;
  if (size < offsetof(tcp_info, tcpi_bytes_received) + sizeof(info.tcpi_bytes_received))
    return false;
  traffic->received = static_cast<int64_t>(info.tcpi_bytes_received);
  traffic->sent = static_cast<int64_t>(info.tcpi_bytes_acked);
  return true;
}

// A client answers what it is sent with frames that tell so, at most about as long.
int64_t ConnectionTable::Held(int fd, Connection* connection, const Calls& calls) {
  Traffic now;
  if (!ReadTraffic(fd, &now)) return 0;
  if (calls.events != connection->events) {
    connection->events = calls.events;
    connection->then = now;
    return 0;
  }
  const int64_t held =
      now.received - connection->then.received - 2 * (now.sent - connection->then.sent);
  int unread = 0;  // is the kernel's still, which bounds it
  if (held > 0 && ioctl(fd, FIONREAD, &unread) != 0) unread = 0;
  return held - unread;
}

void ConnectionTable::AbortHoarder(int fd, int64_t bytes) {
  if (!AbortIf(fd, connections_[fd].peer)) return;
  aborted_hoarders_.fetch_add(1);
  LogLine(LogLevel::kWarning, "a client sends headers that do not end: it is disconnected")
      .With("peer", connections_[fd].peer)
      .With("bytes", bytes);
}

void ConnectionTable::AbortHoarders() {
  absl::MutexLock lock(&mu_);
  int64_t all = 0;
  std::vector<std::pair<int64_t, int>> holders;  // bytes, descriptor
  for (int fd = 0; fd < static_cast<int>(connections_.size()); ++fd) {
    Connection& connection = connections_[fd];
    if (connection.inode == 0 || connection.peer.empty()) continue;
    const Calls calls = CallsOf(connection.peer);
    const int64_t held = Held(fd, &connection, calls);
    if (held <= 0) continue;
    if (calls.open == 0 && held > limits_.idle_bytes) {
      AbortHoarder(fd, held);
    } else {
      all += held;
      holders.emplace_back(held, fd);
    }
  }
  if (all <= limits_.all_bytes) return;
  std::sort(holders.rbegin(), holders.rend());
  for (const auto& [held, fd] : holders) {
    if (all <= limits_.all_bytes) return;
    AbortHoarder(fd, held);
    all -= held;
  }
}

void ConnectionTable::Sweep(absl::Time now) {
  swept_ = now;
  for (size_t fd = 0; fd < connections_.size(); ++fd) {
    Connection& connection = connections_[fd];
    if (connection.inode != 0 && InodeOf(static_cast<int>(fd)) != connection.inode) {
      Forget(&connection);
    }
  }
}

}  // namespace skein::server
