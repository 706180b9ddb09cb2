#include "server/connection_table.h"

#include <sys/stat.h>

#include "absl/time/clock.h"

namespace skein::server {
namespace {

// 0: no such descriptor.
ino_t InodeOf(int fd) {
  struct stat info {};
  return fstat(fd, &info) == 0 ? info.st_ino : 0;
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

void ConnectionTable::Sweep(absl::Time now) {
  swept_ = now;
  for (size_t fd = 0; fd < inodes_.size(); ++fd) {
    if (inodes_[fd] == 0 || InodeOf(static_cast<int>(fd)) == inodes_[fd]) continue;
    inodes_[fd] = 0;
    --count_;
  }
}

}  // namespace skein::server
