#include "server/http_server.h"

#include <arpa/inet.h>
#include <civetweb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace skein::server {
namespace {

// A thread for each connection that is waited for, asleep; and for how long, in milliseconds: less
// than a prober has patience, more than one lost packet costs. A scrape's answer fits into what the
// kernel buffers.
constexpr char kThreads[] = "64";
constexpr char kTimeout[] = "1000";

const char* Reason(int code) {
  switch (code) {
    case 200:
      return "OK";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    default:
      return "Service Unavailable";
  }
}

int Silence(const mg_connection*, const char*) { return 1; }  // errors come as return values

// Makes a connection, so that a thread that waits for one looks around.
void Knock(int port) {
  for (const int family : {AF_INET, AF_INET6}) {
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) continue;
    sockaddr_in v4{};
    v4.sin_family = AF_INET;
    v4.sin_port = htons(static_cast<uint16_t>(port));
    v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = v4.sin_port;
    v6.sin6_addr = in6addr_loopback;
    const auto* address =
        family == AF_INET ? reinterpret_cast<sockaddr*>(&v4) : reinterpret_cast<sockaddr*>(&v6);
    [[maybe_unused]] const int n =
        connect(fd, address, family == AF_INET ? sizeof(v4) : sizeof(v6));
    close(fd);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const char* key,
                                                              const std::string& address,
                                                              Handlers handlers) {
  auto out = std::unique_ptr<HttpServer>(new HttpServer(std::move(handlers)));
  const char* options[] = {
      "listening_ports", address.c_str(),     "num_threads", kThreads, "request_timeout_ms",
      kTimeout,          "enable_keep_alive", "no",          nullptr};
  mg_callbacks callbacks{};
  callbacks.log_message = Silence;
  out->context_ = mg_start(&callbacks, nullptr, options);
  if (out->context_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat(key, ": cannot listen on '", address,
                     "': is the port in use or the address not one of this machine?"));
  }
  mg_set_request_handler(out->context_, "/", Handle, out.get());
  mg_server_port ports[1] = {};
  if (mg_get_server_ports(out->context_, 1, ports) == 1) out->port_ = ports[0].port;
  const size_t colon = address.rfind(':');
  const std::string host = colon == std::string::npos ? "0.0.0.0" : address.substr(0, colon);
  out->address_ = absl::StrCat(host, ":", out->port_);
  return out;
}

// The library's accepting thread looks only every two seconds whether it should end, and stopping
// waits for it: knock until it has noticed.
HttpServer::~HttpServer() {
  if (context_ == nullptr) return;
  std::atomic<bool> stopped{false};
  std::thread knocking([&] {
    while (!stopped.load()) {
      Knock(port_);
      absl::SleepFor(absl::Milliseconds(10));
    }
  });
  mg_stop(context_);
  stopped.store(true);
  knocking.join();
}

HttpAnswer HttpServer::Answer(const std::string& method, const std::string& path) const {
  const auto it = handlers_.find(path);
  if (it == handlers_.end()) return {404, HttpAnswer().type, "not found\n"};
  if (method != "GET" && method != "HEAD") return {405, HttpAnswer().type, "GET or HEAD\n"};
  return it->second();
}

int HttpServer::Handle(mg_connection* connection, void* self) {
  const mg_request_info* info = mg_get_request_info(connection);
  const std::string method = info->request_method;
  const HttpAnswer answer = static_cast<HttpServer*>(self)->Answer(method, info->local_uri);
  const std::string head =
      absl::StrCat("HTTP/1.1 ", answer.code, " ", Reason(answer.code),
                   "\r\nContent-Type: ", answer.type, "\r\nContent-Length: ", answer.body.size(),
                   "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n");
  mg_write(connection, head.data(), head.size());
  if (method != "HEAD") mg_write(connection, answer.body.data(), answer.body.size());
  return answer.code;
}

}  // namespace skein::server
