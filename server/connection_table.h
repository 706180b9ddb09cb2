#pragma once
// Which of our accepted connections are still open, and how many calls each has. gRPC closes
// connections without telling, so each is remembered by its descriptor and inode: a descriptor that
// shows another inode, or none, is a connection that has gone. No gRPC inside. Thread-safe.
//
// The limit of streams leaves out calls that the client has reset (CVE-2023-44487), but gRPC 1.51
// keeps all that belongs to them, some 20 KiB, until it comes to write on the connection: not
// before it has read everything that is there. Whoever resets calls faster than they are read would
// fill the memory, so a connection with more calls than HTTP/2 allows is aborted.

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace skein::server {

class ConnectionTable {
 public:
  // At most `limit` connections, of at most `max_calls` calls each.
  ConnectionTable(int64_t limit, int64_t max_calls) : limit_(limit), max_calls_(max_calls) {}

  // Remembers a connection that was just accepted; false when there are too many already.
  bool Add(int fd);
  // Those that are open now.
  int64_t Count();
  int64_t limit() const { return limit_; }

  // A call of this peer ("ipv4:192.0.2.1:4321", as gRPC has it) begins; it ends with the last copy
  // of what is returned. The table outlives it.
  std::shared_ptr<void> BeginCall(std::string peer);
  // Connections that were aborted for too many calls, since start.
  int64_t aborted() const { return aborted_.load(); }

 private:
  // Looking costs a system call a connection, so under a flood it is done ten times a second.
  static constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

  void Sweep(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndCall(const std::string& peer);
  // False: no such connection.
  bool Abort(const std::string& peer);

  const int64_t limit_, max_calls_;
  std::atomic<int64_t> aborted_{0};
  absl::Mutex mu_;
  std::vector<ino_t> inodes_ ABSL_GUARDED_BY(mu_);  // by descriptor; 0: none
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time swept_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Mutex calls_mu_;
  absl::flat_hash_map<std::string, int64_t> calls_ ABSL_GUARDED_BY(calls_mu_);  // by peer
};

}  // namespace skein::server
