#include "server/connection_table.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/stat.h>

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
  absl::MutexLock lock(&mu_);
  if (fd >= static_cast<int>(inodes_.size())) inodes_.resize(fd + 1, 0);
  // The descriptor was given out again, so what had it before is gone.
  if (inodes_[fd] != 0) --count_;
  inodes_[fd] = 0;
  const absl::Time now = absl::Now();
  if (count_ >= limit_ && now - swept_ >= kLookAgain) Sweep(now);
  if (count_ >= limit_) return false;
  inodes_[fd] = inode;
  ++count_;
  return true;
}

int64_t ConnectionTable::Count() {
  absl::MutexLock lock(&mu_);
  Sweep(absl::Now());
  return count_;
}

std::shared_ptr<void> ConnectionTable::BeginCall(std::string peer) {
  int64_t calls = 0;
  {
    absl::MutexLock lock(&calls_mu_);
    calls = ++calls_[peer];
  }
  if (calls == max_calls_ + 1 && Abort(peer)) {
    aborted_.fetch_add(1);
    LogLine(LogLevel::kWarning, "a client resets calls faster than they end: it is disconnected")
        .With("peer", peer)
        .With("calls", calls);
  }
  struct Lease {
    ConnectionTable* table;
    std::string peer;
    ~Lease() { table->EndCall(peer); }
  };
  return std::shared_ptr<Lease>(new Lease{this, std::move(peer)});
}

void ConnectionTable::EndCall(const std::string& peer) {
  absl::MutexLock lock(&calls_mu_);
  const auto it = calls_.find(peer);
  if (--it->second == 0) calls_.erase(it);
}

bool ConnectionTable::Abort(const std::string& peer) {
  absl::MutexLock lock(&mu_);
  for (size_t fd = 0; fd < inodes_.size(); ++fd) {
    if (inodes_[fd] == 0 || PeerOf(static_cast<int>(fd)) != peer) continue;
    // Dissolves the connection and throws away what has come and was not read; shutdown() would
    // leave that to be read. The descriptor stays gRPC's, which finds it broken.
    const sockaddr nobody{AF_UNSPEC, {}};
    return connect(static_cast<int>(fd), &nobody, sizeof(nobody)) == 0;
  }
  return false;
}

void ConnectionTable::Sweep(absl::Time now) {
  swept_ = now;
  for (size_t fd = 0; fd < inodes_.size(); ++fd) {
    if (inodes_[fd] == 0 || InodeOf(static_cast<int>(fd)) == inodes_[fd]) continue;
    inodes_[fd] = 0;
    --count_;
  }
}

}  // namespace skein::server
