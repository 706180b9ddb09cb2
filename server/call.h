#pragma once
// What every RPC has in common: counters at start and end, one log line, errors turned into gRPC
// status with details. Authentication will stand here too.

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/server_callback.h"
#include "server/convert.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/wire.h"

namespace skein::server {

// What the services work with. Constant after start; everything pointed to is thread-safe and
// outlives the server.
struct ServiceContext {
  const ServerConfig* config = nullptr;
  const ServedModel* model = nullptr;
  const Converter* converter = nullptr;
  engine::Engine* engine = nullptr;
  Metrics* metrics = nullptr;
};

// Names of the API, string literals.
struct Method {
  const char* service;
  const char* name;
};

// One RPC from arrival to end. Moved along with it; one thread at a time.
class Call {
 public:
  Call(const ServiceContext& services, Method method, grpc::CallbackServerContext* context);

  const ServiceContext& services() const { return *services_; }
  absl::Time start() const { return start_; }
  absl::Time deadline() const;
  // True when the gRPC deadline has passed (or is about to: timers of the transport are not exact).
  bool deadline_passed() const { return absl::Now() + absl::Milliseconds(20) >= deadline(); }

  // Exactly once, before the reactor's Finish: counts and converts. Before any header was sent,
  // `refused` counts it as a refused request too.
  grpc::Status End(const absl::Status& status, bool refused = false);
  // The log line of a call that ended with `status`; the caller may add fields.
  void Log(LogLine& line, const absl::Status& status) const;
  static LogLevel LevelOf(const absl::Status& status);

 private:
  const ServiceContext* services_;
  Method method_;
  grpc::CallbackServerContext* context_;
  absl::Time start_;
};

// 128 random bits as text, for requests that came without an id.
std::string NewRequestId();

// A unary RPC: parse, `handler(const Request&, Response*) -> absl::Status`, serialise. Handlers are
// quick.
template <typename Request, typename Response, typename Handler>
grpc::ServerUnaryReactor* Unary(const ServiceContext& services, Method method,
                                grpc::CallbackServerContext* context, const grpc::ByteBuffer* in,
                                grpc::ByteBuffer* out, Handler handler) {
  Call call(services, method, context);
  Request request;
  Response response;
  absl::Status status = Parse(*in, &request);
  if (status.ok()) status = handler(request, &response);
  if (status.ok()) Serialize(response, out);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  LogLine line(Call::LevelOf(status), "rpc");
  call.Log(line, status);
  reactor->Finish(call.End(status));
  return reactor;
}

// Ends a streaming RPC before any header, so that the client's retry policy applies.
class RefusedStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedStream(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

}  // namespace skein::server
