#pragma once
// Which of our accepted connections are still open, and how many calls each has. gRPC closes
// connections without telling, so each is remembered by its descriptor and inode: a descriptor that
// shows another inode, or none, is a connection that has gone. No gRPC inside. Thread-safe.
//
// The limit of streams leaves out calls that the client has reset (CVE-2023-44487), but gRPC 1.51
// keeps all that belongs to them, some 20 KiB, until it comes to write on the connection: not
// before it has read everything that is there. Whoever resets calls faster than they are read would
// fill the memory, so a connection with more calls than HTTP/2 allows is aborted.
//
// gRPC 1.51 also keeps what it is sent of headers that do not end (CVE-2023-33953), and what it
// does with bytes cannot be seen, under TLS not even they. But the kernel counts them: a connection
// on which bytes come and nothing comes of them, no call and no request, is aborted too.

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

struct ConnectionLimits {
  int64_t connections = 0;  // at once
  int64_t calls = 0;        // of one connection, that have begun and not ended
  // Bytes with nothing coming of them: from one connection without calls, which has no request on
  // its way; and from all connections together.
  int64_t idle_bytes = INT64_MAX;
  int64_t all_bytes = INT64_MAX;
};

class ConnectionTable {
 public:
  explicit ConnectionTable(const ConnectionLimits& limits) : limits_(limits) {}

  // Remembers a connection that was just accepted; false when there are too many already.
  bool Add(int fd);
  // Those that are open now.
  int64_t Count();
  int64_t limit() const { return limits_.connections; }

  // A call of this peer ("ipv4:192.0.2.1:4321", as gRPC has it) begins; it ends with the last copy
  // of what is returned. The table outlives it.
  std::shared_ptr<void> BeginCall(std::string peer);
  // A call's request has come.
  void RequestCame(const std::string& peer);
  // Connections that were aborted for too many calls, since start.
  int64_t aborted() const { return aborted_.load(); }

  // Aborts those that send and send, and nothing comes of it. To be called again and again: what
  // comes between two looks is not bounded. TCP only: the kernel does not count for unix sockets.
  void AbortHoarders();
  int64_t aborted_hoarders() const { return aborted_hoarders_.load(); }

 private:
  // Looking costs a system call a connection, so under a flood it is done ten times a second.
  static constexpr absl::Duration kLookAgain = absl::Milliseconds(100);

  // Payload since the connection began, as the kernel counts it.
  struct Traffic {
    int64_t received = 0, sent = 0;
  };
  struct Connection {
    ino_t inode = 0;   // 0: none
    std::string peer;  // empty: of a unix socket
    int64_t events = 0;
    Traffic then;  // when `events` was seen first
  };
  // Of one peer.
  struct Calls {
    int64_t connections = 0;  // 0 or 1; 2 while an old one is not yet known to have gone
    int64_t open = 0;
    int64_t events = 0;  // calls that began or ended, requests that came
  };

  static bool ReadTraffic(int fd, Traffic* traffic);
  void Sweep(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Forget(Connection* connection) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Bytes that came since something came of them; fewer by what was sent, which clients answer.
  int64_t Held(int fd, Connection* connection, const Calls& calls)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  Calls CallsOf(const std::string& peer) ABSL_LOCKS_EXCLUDED(calls_mu_);
  void EndCall(const std::string& peer);
  // False: no such connection.
  bool Abort(const std::string& peer);
  bool AbortIf(int fd, const std::string& peer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void AbortHoarder(int fd, int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ConnectionLimits limits_;
  std::atomic<int64_t> aborted_{0}, aborted_hoarders_{0};
  absl::Mutex mu_ ABSL_ACQUIRED_BEFORE(calls_mu_);
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mu_);  // by descriptor
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time swept_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Mutex calls_mu_;
  absl::flat_hash_map<std::string, Calls> calls_ ABSL_GUARDED_BY(calls_mu_);  // by peer
};

}  // namespace skein::server
