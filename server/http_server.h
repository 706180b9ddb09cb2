#pragma once
// A small HTTP server for whoever watches the daemon: metrics, health, readiness. GET and HEAD of
// fixed paths, nothing else, no keep-alive. A connection that sends nothing holds one of its
// threads for a second, so that a probe is answered at once beside some sixty of them, and within
// about a second beside twice as many.

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

struct mg_connection;
struct mg_context;

namespace skein::server {

struct HttpAnswer {
  int code = 200;
  std::string type = "text/plain; charset=utf-8";
  std::string body;
};

class HttpServer {
 public:
  // Called on the server's threads.
  using Handler = std::function<HttpAnswer()>;
  using Handlers = std::map<std::string, Handler>;  // by path

  // Listens on "address:port"; port 0 takes a free one. The error names `key`.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const char* key,
                                                           const std::string& address,
                                                           Handlers handlers);
  // Waits for the handlers that run.
  ~HttpServer();

  // With the real port.
  const std::string& address() const { return address_; }

 private:
  explicit HttpServer(Handlers handlers) : handlers_(std::move(handlers)) {}
  static int Handle(mg_connection* connection, void* self);
  HttpAnswer Answer(const std::string& method, const std::string& path) const;

  const Handlers handlers_;
  std::string address_;
  int port_ = 0;
  mg_context* context_ = nullptr;
};

}  // namespace skein::server
