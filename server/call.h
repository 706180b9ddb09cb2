#pragma once
// What every RPC has in common: who calls and whether they may, counters at start and end, one log
// line, errors turned into gRPC status with details.

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "engine/engine.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/authenticator.h"
#include "server/connection_table.h"
#include "server/convert.h"
#include "server/live_config.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/model_registry.h"
#include "server/wire.h"

namespace skein::server {

class Lifecycle;
class ModelManager;
class RequestLog;
class Rpc;
struct ReloadPlan;

// What the services work with. Constant after start; everything pointed to is thread-safe and
// outlives the server.
struct ServiceContext {
  const LiveConfig* config = nullptr;
  ModelRegistry* models = nullptr;
  engine::ConversationStore* conversations = nullptr;
  RequestLog* requests = nullptr;
  Metrics* metrics = nullptr;
  const Authenticator* auth = nullptr;
  ConnectionTable* connections = nullptr;
  Lifecycle* lifecycle = nullptr;
  ModelManager* manager = nullptr;
  // Reads the configuration again. An error: nothing has changed.
  std::function<absl::StatusOr<ReloadPlan>()> reload;
  // Shows at once what `lifecycle` has become.
  std::function<void()> health_changed;

  // The model of this name (empty: the default) and the configuration in force, for one request.
  absl::StatusOr<ModelUse> Use(absl::string_view model) const;
};

// Names of the API, string literals.
struct Method {
  const char* service;
  const char* name;
};

// One RPC from arrival to end. Lives in its reactor until gRPC is done with that; one thread at a
// time.
class Call {
 public:
  // `rpc` is the call's end at the transport; nullptr where the call has a reactor of its own.
  Call(const ServiceContext& services, Method method, grpc::CallbackServerContext* context,
       Rpc* rpc = nullptr);

  Rpc* rpc() const { return rpc_; }
  const ServiceContext& services() const { return *services_; }
  // Whether the caller may call this method. An error ends the call before its request is read.
  const absl::Status& access() const { return access_; }
  // Who calls: tenant, scopes, quotas. Nobody when access() is an error.
  const Principal& principal() const { return *principal_; }
  // The request: access() when that is an error, else what wire.h says.
  absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* request) const;
  // The bytes of the request are there.
  void RequestCame() const { services_->connections->RequestCame(context_->peer()); }
  // The model that the request asks for, as ServiceContext::Use.
  absl::StatusOr<ModelUse> Use(absl::string_view model);
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
  // How long the client should wait before it tries again.
  absl::Duration RetryDelay(const absl::Status& status) const;

  const ServiceContext* services_;
  Method method_;
  grpc::CallbackServerContext* context_;
  Rpc* rpc_;
  std::shared_ptr<void> counted_;  // among the calls of its connection
  absl::Time start_;
  absl::Status access_;
  std::shared_ptr<const Principal> principal_;
  std::optional<ModelUse> model_;  // once Use has found it
};

// 128 random bits as text, for requests that came without an id.
std::string NewRequestId();

}  // namespace skein::server
