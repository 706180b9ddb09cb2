#pragma once
// A listening address of our own. gRPC gets each connection only once it is accepted, because its
// own listener has no limit on connections and stops for good when descriptors run out.

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/connection_table.h"

namespace skein::server {

// What became of connections that were not accepted; counted since start.
struct RefusedConnections {
  std::atomic<int64_t> limit{0};        // more than the table allows
  std::atomic<int64_t> descriptors{0};  // none left in the process
};

class Listener {
 public:
  // "host:port", "[v6]:port" or "unix:/path"; port 0 takes a free one. The key of the configuration
  // (`key`) stands in messages. Nothing is accepted before Start. A name with several addresses
  // listens on all of them.
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(const std::string& address,
                                                        absl::string_view key);
  ~Listener();

  // `accept` gets each new connection, non-blocking, and owns it; called on a thread of the
  // listener. `table` and `refused` outlive the listener.
  void Start(ConnectionTable* table, RefusedConnections* refused,
             std::function<void(int listener, int fd)> accept);
  // Accepts nothing more and closes the address. Returns when `accept` is not running.
  void Stop();

  // With the real port.
  const std::string& address() const { return address_; }

 private:
  Listener() = default;
  absl::Status BindUnix(const std::string& path);
  absl::Status BindTcp(absl::string_view host, absl::string_view port);
  // 0, or the error number; owns `fd` in both cases.
  int ListenOn(int fd, const void* address, uint32_t size);
  void Loop();
  // False: nothing more to accept now.
  bool AcceptOne(int listener);
  void OutOfDescriptors(int listener, int error);

  std::string address_;
  std::string unix_path_;  // removed at the end
  std::vector<int> sockets_;
  int wake_ = -1;     // an eventfd that ends the loop
  int reserve_ = -1;  // given up to refuse a connection when no descriptor is left
  ConnectionTable* table_ = nullptr;
  RefusedConnections* refused_ = nullptr;
  std::function<void(int, int)> accept_;
  absl::Time last_warning_ = absl::InfinitePast();  // of the loop's thread
  std::thread thread_;
};

// Whether only this machine can reach the address: 127.0.0.0/8, ::1, "localhost" or a unix socket.
bool IsLoopback(absl::string_view address);
// Whether Bind understands it.
bool IsAddress(absl::string_view address);
// Splits "host:port" and "[v6]:port"; false when it is neither.
bool SplitHostPort(absl::string_view address, absl::string_view* host, absl::string_view* port);

}  // namespace skein::server
