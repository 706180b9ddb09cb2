// Listening addresses, the limit on connections, and what happens without descriptors.

#include "server/listener.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/temp_folder.h"

namespace skein::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr int64_t kCalls = 4;

int Connect(const std::string& address) {
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  timeval patience{5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  EXPECT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
  return fd;
}

bool ClosedByPeer(int fd) {
  char byte;
  return recv(fd, &byte, 1, 0) <= 0 && errno != EAGAIN;
}

// Keeps what it is given.
class Acceptor {
 public:
  ~Acceptor() { CloseAll(); }
  std::function<void(int, int)> function() {
    return [this](int, int fd) {
      const std::lock_guard lock(mu_);
      fds_.push_back(fd);
    };
  }
  size_t WaitFor(size_t n) {
    const absl::Time end = absl::Now() + absl::Seconds(60);
    while (Size() < n && absl::Now() < end) absl::SleepFor(absl::Milliseconds(1));
    return Size();
  }
  size_t Size() {
    const std::lock_guard lock(mu_);
    return fds_.size();
  }
  void CloseAll() {
    const std::lock_guard lock(mu_);
    for (const int fd : fds_) close(fd);
    fds_.clear();
  }

 private:
  std::mutex mu_;
  std::vector<int> fds_;  // guarded by mu_
};

TEST(Addresses, AreSplitAndJudged) {
  absl::string_view host, port;
  EXPECT_TRUE(SplitHostPort("a.b:80", &host, &port));
  EXPECT_EQ(host, "a.b");
  EXPECT_TRUE(SplitHostPort("[::1]:80", &host, &port));
  EXPECT_EQ(host, "::1");
  for (const char* bad :
       {"", "host", "host:", ":80", "::1:80", "host:x", "host:65536", "host:-1"}) {
    EXPECT_FALSE(SplitHostPort(bad, &host, &port)) << bad;
  }
  for (const char* here : {"127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"}) {
    EXPECT_TRUE(IsLoopback(here)) << here;
  }
  for (const char* there : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1", "128.0.0.1:1", "1270:1",
                            "localhost.example.com:1", "nonsense"}) {
    EXPECT_FALSE(IsLoopback(there)) << there;
  }
}

TEST(Listener, TellsWhyItCannotListen) {
  const auto first = Listener::Bind("127.0.0.1:0", "listen.address");
  ASSERT_TRUE(first.ok()) << first.status();
  for (const auto& [address, why] : std::vector<std::pair<std::string, std::string>>{
           {(*first)->address(), "Address already in use"},
           {"192.0.2.1:0", "Cannot assign requested address"},
           {"localhost", "expected host:port"},
           {"unix:/nowhere/at/all", "No such file"}}) {
    const auto second = Listener::Bind(address, "listen.control");
    ASSERT_FALSE(second.ok());
    EXPECT_THAT(std::string(second.status().message()),
                StartsWith(absl::StrCat("listen.control: cannot listen on '", address, "'")));
    EXPECT_THAT(std::string(second.status().message()), HasSubstr(why));
  }
}

TEST(Listener, RefusesConnectionsBeyondTheLimit) {
  Acceptor acceptor;
  ConnectionTable table({2, kCalls});
  RefusedConnections refused;
  auto listener = *Listener::Bind("127.0.0.1:0", "x");
  listener->Start(&table, &refused, acceptor.function());
  const int a = Connect(listener->address()), b = Connect(listener->address());
  EXPECT_EQ(acceptor.WaitFor(2), 2);
  const int c = Connect(listener->address());
  EXPECT_TRUE(ClosedByPeer(c));
  EXPECT_EQ(refused.limit.load(), 1);
  EXPECT_EQ(table.Count(), 2);
  // Connections are gone when our side has closed them, whoever did it.
  acceptor.CloseAll();
  EXPECT_EQ(table.Count(), 0);
  absl::SleepFor(absl::Milliseconds(110));
  const int d = Connect(listener->address());
  EXPECT_EQ(acceptor.WaitFor(1), 1);
  listener->Stop();
  for (const int fd : {a, b, c, d}) close(fd);
}

TEST(Listener, SurvivesTheLackOfDescriptors) {
  Acceptor acceptor;
  ConnectionTable table({1000, kCalls});
  RefusedConnections refused;
  auto listener = *Listener::Bind("127.0.0.1:0", "x");
  listener->Start(&table, &refused, acceptor.function());
  const int ours = Connect(listener->address());
  ASSERT_EQ(acceptor.WaitFor(1), 1);

  // All descriptors but the one for our next connection are used up.
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few{64, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<int> used;
  for (int fd = dup(ours); fd >= 0; fd = dup(ours)) used.push_back(fd);
  ASSERT_FALSE(used.empty());
  close(used.back());
  used.pop_back();
  const int refused_one = Connect(listener->address());
  EXPECT_TRUE(ClosedByPeer(refused_one));
  EXPECT_GE(refused.descriptors.load(), 1);

  for (const int fd : used) close(fd);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  const int again = Connect(listener->address());
  EXPECT_EQ(acceptor.WaitFor(2), 2);
  listener->Stop();
  for (const int fd : {ours, refused_one, again}) close(fd);
}

TEST(Listener, TakesOverADeadUnixSocket) {
  const std::string path = absl::StrCat(TempFolder(), "/skein.", getpid(), ".sock");
  const std::string address = absl::StrCat("unix:", path);
  {
    auto listener = Listener::Bind(address, "x");
    ASSERT_TRUE(listener.ok()) << listener.status();
    EXPECT_FALSE(Listener::Bind(address, "x").ok());  // it is alive
  }
  EXPECT_NE(access(path.c_str(), F_OK), 0);
  // What a killed daemon leaves behind.
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct {
    sa_family_t family = AF_UNIX;
    char path[108] = {};
  } dead;
  path.copy(dead.path, sizeof(dead.path) - 1);
  ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&dead), sizeof(dead)), 0);
  close(fd);
  EXPECT_TRUE(Listener::Bind(address, "x").ok());
}

TEST(ConnectionTable, ForgetsDescriptorsThatWereGivenOutAgain) {
  ConnectionTable table({10, kCalls});
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  EXPECT_TRUE(table.Add(pair[0]));
  EXPECT_TRUE(table.Add(pair[1]));
  EXPECT_EQ(table.Count(), 2);
  close(pair[0]);
  const int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(other, pair[0]);  // the same number, something else
  EXPECT_EQ(table.Count(), 1);
  close(other);
  close(pair[1]);
  EXPECT_EQ(table.Count(), 0);
}

// As gRPC names the other end of a connection.
std::string PeerName(int client) {
  sockaddr_in own{};
  socklen_t size = sizeof(own);
  EXPECT_EQ(getsockname(client, reinterpret_cast<sockaddr*>(&own), &size), 0);
  return absl::StrCat("ipv4:127.0.0.1:", ntohs(own.sin_port));
}

TEST(ConnectionTable, AbortsAConnectionWithTooManyCalls) {
  Acceptor acceptor;
  ConnectionTable table({10, kCalls});
  RefusedConnections refused;
  auto listener = *Listener::Bind("127.0.0.1:0", "x");
  listener->Start(&table, &refused, acceptor.function());
  const int good = Connect(listener->address()), bad = Connect(listener->address());
  ASSERT_EQ(acceptor.WaitFor(2), 2);
  std::vector<std::shared_ptr<void>> open;
  for (int i = 0; i < 100; ++i) table.BeginCall(PeerName(good));  // each ends at once
  for (int i = 0; i < kCalls; ++i) open.push_back(table.BeginCall(PeerName(good)));
  for (int i = 0; i < kCalls; ++i) open.push_back(table.BeginCall(PeerName(bad)));
  table.BeginCall("ipv4:192.0.2.1:4321");  // a peer that is not there
  EXPECT_EQ(table.aborted(), 0);
  ASSERT_EQ(send(bad, "unread", 6, MSG_NOSIGNAL), 6);
  open.push_back(table.BeginCall(PeerName(bad)));
  EXPECT_EQ(table.aborted(), 1);
  EXPECT_TRUE(ClosedByPeer(bad));
  EXPECT_EQ(send(good, "x", 1, MSG_NOSIGNAL), 1);
  char byte;
  EXPECT_TRUE(recv(good, &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
  open.clear();
  listener->Stop();
  for (const int fd : {good, bad}) close(fd);
}

// Sends that many bytes, which are read at the other end.
void SendAndRead(int client, int server, int64_t bytes) {
  std::string data(1 << 14, 'x');
  for (int64_t sent = 0; sent < bytes; sent += static_cast<int64_t>(data.size())) {
    ASSERT_EQ(send(client, data.data(), data.size(), MSG_NOSIGNAL), data.size());
    ASSERT_EQ(recv(server, data.data(), data.size(), MSG_WAITALL), data.size());
  }
}

// A table with two connections, from both ends.
class Hoarders : public ::testing::Test {
 protected:
  void Open(const ConnectionLimits& limits) {
    table_ = std::make_unique<ConnectionTable>(limits);
    listener_ = *Listener::Bind("127.0.0.1:0", "x");
    listener_->Start(table_.get(), &refused_, [this](int, int fd) {
      fcntl(fd, F_SETFL, 0);  // blocking
      const std::lock_guard lock(mu_);
      accepted_.push_back(fd);
    });
    for (int i = 0; i < 2; ++i) {
      clients_.push_back(Connect(listener_->address()));
      while (Accepted() <= i) absl::SleepFor(absl::Milliseconds(1));
    }
    table_->AbortHoarders();
  }
  ~Hoarders() override {
    listener_->Stop();
    for (const int fd : clients_) close(fd);
    for (const int fd : accepted_) close(fd);
  }
  int Accepted() {
    const std::lock_guard lock(mu_);
    return static_cast<int>(accepted_.size());
  }
  bool Alive(int i) {
    char byte;
    return recv(clients_[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }
  void Send(int i, int64_t bytes) { SendAndRead(clients_[i], accepted_[i], bytes); }

  std::unique_ptr<ConnectionTable> table_;
  RefusedConnections refused_;
  std::unique_ptr<Listener> listener_;
  std::mutex mu_;
  std::vector<int> clients_, accepted_;
};

constexpr int64_t kKiB = 1 << 10;

TEST_F(Hoarders, BytesOfWhichNothingComesAreBounded) {
  Open({.connections = 10, .calls = 10, .idle_bytes = 100 * kKiB});
  for (int i = 0; i < 10; ++i) {
    Send(0, 80 * kKiB);
    table_->BeginCall(PeerName(clients_[0]));  // ends at once
    table_->AbortHoarders();
  }
  Send(0, 80 * kKiB);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 0);
  Send(0, 32 * kKiB);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 1);
  EXPECT_TRUE(ClosedByPeer(clients_[0]));
  EXPECT_TRUE(Alive(1));
  table_->AbortHoarders();  // it is counted once
  EXPECT_EQ(table_->aborted_hoarders(), 1);
}

TEST_F(Hoarders, ACallMaySendItsRequest) {
  Open({.connections = 10, .calls = 10, .idle_bytes = 100 * kKiB, .all_bytes = 500 * kKiB});
  const auto call = table_->BeginCall(PeerName(clients_[0]));
  table_->AbortHoarders();
  for (int i = 0; i < 3; ++i) {
    Send(0, 480 * kKiB);
    table_->AbortHoarders();
    EXPECT_EQ(table_->aborted_hoarders(), 0);
    table_->RequestCame(PeerName(clients_[0]));
    table_->AbortHoarders();
  }
  Send(0, 512 * kKiB);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 1);
}

TEST_F(Hoarders, AClientAnswersWhatItIsSent) {
  Open({.connections = 10, .calls = 10, .idle_bytes = 100 * kKiB});
  for (int i = 0; i < 5; ++i) {
    SendAndRead(accepted_[0], clients_[0], 64 * kKiB);
    Send(0, 128 * kKiB);
    table_->AbortHoarders();
  }
  EXPECT_EQ(table_->aborted_hoarders(), 0);
}

TEST_F(Hoarders, WhatNobodyHasReadIsTheKernels) {
  Open({.connections = 10, .calls = 10, .idle_bytes = 8 * kKiB});
  const std::string data(16 * kKiB, 'x');
  ASSERT_EQ(send(clients_[0], data.data(), data.size(), MSG_NOSIGNAL), data.size());
  int unread = 0;
  while (unread < 16 * kKiB) ASSERT_EQ(ioctl(accepted_[0], FIONREAD, &unread), 0);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 0);
}

TEST_F(Hoarders, AllTogetherAreBoundedAndTheGreediestGoes) {
  Open({.connections = 10, .calls = 10, .idle_bytes = 100 * kKiB, .all_bytes = 128 * kKiB});
  Send(0, 64 * kKiB);
  Send(1, 48 * kKiB);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 0);
  Send(1, 32 * kKiB);
  table_->AbortHoarders();
  EXPECT_EQ(table_->aborted_hoarders(), 1);
  EXPECT_TRUE(ClosedByPeer(clients_[1]));
  EXPECT_TRUE(Alive(0));
}

}  // namespace
}  // namespace skein::server
