#pragma once
// Which of our accepted connections are still open. gRPC closes them without telling, so each is
// remembered by its descriptor and inode: a descriptor that shows another inode, or none, is a
// connection that has gone. No gRPC inside. Thread-safe.

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace skein::server {

class ConnectionTable {
 public:
  explicit ConnectionTable(int64_t limit) : limit_(limit) {}

  // Remembers a connection that was just accepted; false when there are too many already.
  bool Add(int fd);
  // Those that are open now.
  int64_t Count();
  int64_t limit() const { return limit_; }

 private:
  // Looking costs a system call a connection, so under a flood it is done ten times a second.
  static constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

  void Sweep(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int64_t limit_;
  absl::Mutex mu_;
  std::vector<ino_t> inodes_ ABSL_GUARDED_BY(mu_);  // by descriptor; 0: none
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time swept_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

}  // namespace skein::server
