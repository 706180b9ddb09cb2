#include "server/grpc_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/mutex_checks.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/dispatcher.h"
#include "server/quiet_protobuf.h"

namespace skein::server {
namespace {

using Acceptor = grpc::experimental::ExternalConnectionAcceptor;

// Descriptors kept for files, logs, metrics and what gRPC needs for itself.
constexpr int64_t kOtherDescriptors = 256;
constexpr double kMostPingSeconds = 20;  // for the answer to a ping
constexpr int64_t kLeastTransportMemory = int64_t{64} << 20;

// Calls of one connection that have begun and not ended, those that the client has given up among
// them: a good client gives up all that it may have at once and begins as many again, and where it
// may have few at once it does so several times before the server comes to end them. 10 MiB.
constexpr int64_t kLeastCalls = 512;
// Frames, TLS, and headers that are refused as too long, come on top of what a limit allows.
constexpr int64_t kLeastIdleBytes = int64_t{1} << 20;
// How often the connections are looked at; more rarely where that takes longer, so that it costs no
// more than one part in twenty of a processor.
constexpr absl::Duration kLook = absl::Milliseconds(50);
constexpr double kLookShare = 20;

int Milliseconds(double seconds) {
  return static_cast<int>(std::min(seconds * 1000, static_cast<double>(INT_MAX)));
}

void SetLimits(const ListenConfig& c, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(c.max_message_bytes));
  // A compressed request is refused, not unpacked: gRPC would unpack a few kilobytes to gigabytes
  // before it looks at the size.
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder->SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  const auto set = [&](const char* name, int value) { builder->AddChannelArgument(name, value); };
  set(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(c.max_metadata_bytes));
  set(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(c.max_streams));
  set(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(c.keepalive_seconds));
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(std::min(c.keepalive_seconds, kMostPingSeconds)));
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      Milliseconds(c.min_client_ping_seconds));
  set(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(c.handshake_seconds));
  set(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  set(GRPC_ARG_ENABLE_CHANNELZ, 0);  // nobody reads it, and it costs memory for each connection
  if (c.max_connection_idle_seconds > 0) {
    set(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(c.max_connection_idle_seconds));
  }
  if (c.max_connection_age_seconds > 0) {
    set(GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(c.max_connection_age_seconds));
    set(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, Milliseconds(c.max_connection_grace_seconds));
  }
}

// The limit of open files, raised to what the process may have.
int64_t Descriptors() {
  rlimit files{};
  SKEIN_CHECK(getrlimit(RLIMIT_NOFILE, &files) == 0);
  const rlimit raised{files.rlim_max, files.rlim_max};
  if (files.rlim_cur < files.rlim_max && setrlimit(RLIMIT_NOFILE, &raised) == 0) files = raised;
  return files.rlim_cur == RLIM_INFINITY ? INT_MAX : static_cast<int64_t>(files.rlim_cur);
}

int64_t TransportMemory(const ServerConfig& c) {
  if (c.listen.transport_memory_bytes > 0) return c.listen.transport_memory_bytes;
  return std::max(c.MemoryBytes() / 8, kLeastTransportMemory);
}

}  // namespace

int64_t ConnectionLimit(const ListenConfig& listen) {
  const int64_t descriptors = Descriptors();
  const int64_t left = descriptors - std::min(kOtherDescriptors, descriptors / 2);
  return listen.max_connections > 0 ? listen.max_connections : left;
}

ConnectionLimits LimitsOf(const ServerConfig& config) {
  ConnectionLimits limits;
  limits.connections = ConnectionLimit(config.listen);
  limits.calls = std::max(kLeastCalls, 2 * config.listen.max_streams);
  limits.idle_bytes = std::max(kLeastIdleBytes, 4 * config.listen.max_metadata_bytes);
  // gRPC bounds the memory of requests on their way itself, and says so to who sends one.
  limits.all_bytes = 2 * TransportMemory(config);
  return limits;
}

void InitGrpc() {
  base::LeaveOutMutexChecks();
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // we report errors ourselves
  QuietProtobuf();
  grpc::EnableDefaultHealthCheckService(false);  // health_service.h
}

// One address and the services there: gRPC ties services to a server, not to an address.
class GrpcServer::Port {
 public:
  Port(const ServiceContext& services, HealthBoard* board, std::vector<Service> served)
      : health_(services, board), dispatcher_(services, WithHealth(std::move(served))) {}
  ~Port() { Shutdown(absl::Now()); }

  absl::Status Bind(const char* key, const std::string& address) {
    SKEIN_ASSIGN_OR_RETURN(listener_, Listener::Bind(address, key));
    return absl::OkStatus();
  }

  absl::Status Serve(grpc::ServerBuilder* builder, std::shared_ptr<grpc::ServerCredentials> creds,
                     ConnectionTable* connections, RefusedConnections* refused) {
    builder->RegisterCallbackGenericService(&dispatcher_);
    credentials_ = std::move(creds);
    using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
    acceptor_ = builder->experimental().AddExternalConnectionAcceptor(Type::FROM_FD, credentials_);
    server_ = builder->BuildAndStart();
    if (server_ == nullptr) return absl::InternalError("gRPC does not start");
    listener_->Start(connections, refused, [this](int listener, int fd) {
      Acceptor::NewConnectionParameters connection;
      connection.listener_fd = listener;
      connection.fd = fd;
      acceptor_->HandleNewConnection(&connection);
    });
    return absl::OkStatus();
  }

  void StopAccepting() {
    if (listener_ != nullptr) listener_->Stop();
  }
  void Shutdown(absl::Time deadline) {
    StopAccepting();
    if (server_ == nullptr) return;
    server_->Shutdown(absl::ToChronoTime(deadline));
    server_->Wait();
  }

  const std::string& address() const { return listener_->address(); }
  const std::vector<std::string>& names() const { return dispatcher_.names(); }

 private:
  std::vector<Service> WithHealth(std::vector<Service> served) {
    served.push_back(health_.methods());
    return served;
  }

  HealthService health_;
  Dispatcher dispatcher_;
  std::unique_ptr<Listener> listener_;
  std::shared_ptr<grpc::ServerCredentials> credentials_;  // outlive the server
  std::unique_ptr<Acceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

GrpcServer::GrpcServer(const ServiceContext& services, const ServerConfig& config)
    : services_(services),
      generation_(services),
      conversations_(services),
      info_(services),
      control_(services),
      health_({GenerationService::kName, ConversationsService::kName, InfoService::kName,
               ControlService::kName}),
      quota_("skeind") {
  quota_.Resize(TransportMemory(config));
}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ServiceContext& services) {
  const std::shared_ptr<const ServerConfig> config = services.config->Get();
  auto out = std::unique_ptr<GrpcServer>(new GrpcServer(services, *config));
  SKEIN_RETURN_IF_ERROR(out->Open(config->listen));
  return out;
}

absl::Status GrpcServer::Open(const ListenConfig& listen) {
  if (listen.tls.enabled()) {
    SKEIN_ASSIGN_OR_RETURN(certificates_, CertificateSource::Create(listen.tls));
  }
  std::vector<Service> open = {generation_.methods(), conversations_.methods(), info_.methods()};
  if (listen.control.empty()) open.push_back(control_.methods());
  SKEIN_RETURN_IF_ERROR(OpenPort("listen.address", listen.address, listen, std::move(open)));
  watch_ = std::thread([this] { WatchConnections(); });
  if (listen.control.empty()) return absl::OkStatus();
  return OpenPort("listen.control", listen.control, listen, {control_.methods()});
}

absl::Status GrpcServer::OpenPort(const char* key, const std::string& address,
                                  const ListenConfig& listen, std::vector<Service> served) {
  auto port = std::make_unique<Port>(services_, &health_, std::move(served));
  SKEIN_RETURN_IF_ERROR(port->Bind(key, address));
  grpc::ServerBuilder builder;
  SetLimits(listen, &builder);
  builder.SetResourceQuota(quota_);
  SKEIN_RETURN_IF_ERROR(port->Serve(&builder,
                                    certificates_ != nullptr ? certificates_->NewCredentials()
                                                             : grpc::InsecureServerCredentials(),
                                    services_.connections, &refused_));
  ports_.push_back(std::move(port));
  return absl::OkStatus();
}

GrpcServer::~GrpcServer() {
  Shutdown(absl::Now());
  stopped_.Notify();
  if (watch_.joinable()) watch_.join();
}

void GrpcServer::WatchConnections() {
  absl::Duration pause = kLook;
  while (!stopped_.WaitForNotificationWithTimeout(pause)) {
    const absl::Time begin = absl::Now();
    services_.connections->AbortHoarders();
    pause = std::max(kLook, kLookShare * (absl::Now() - begin));
  }
}

const std::string& GrpcServer::address() const { return ports_.front()->address(); }

std::string GrpcServer::control_address() const {
  return ports_.size() > 1 ? ports_.back()->address() : std::string();
}

std::vector<std::string> GrpcServer::service_names() const {
  std::vector<std::string> all;
  for (const auto& port : ports_) {
    const std::vector<std::string> names = port->names();
    all.insert(all.end(), names.begin(), names.end());
  }
  return all;
}

void GrpcServer::Maintain() {
  const int64_t limit = refused_.limit.load(), descriptors = refused_.descriptors.load();
  const int64_t aborted = services_.connections->aborted();
  services_.metrics->SetConnections(services_.connections->Count());
  services_.metrics->ConnectionsRefused("limit", limit - std::exchange(told_limit_, limit));
  services_.metrics->ConnectionsRefused(
      "descriptors", descriptors - std::exchange(told_descriptors_, descriptors));
  services_.metrics->ConnectionsRefused("calls", aborted - std::exchange(told_aborted_, aborted));
  const int64_t hoarders = services_.connections->aborted_hoarders();
  services_.metrics->ConnectionsRefused("headers",
                                        hoarders - std::exchange(told_hoarders_, hoarders));
  if (certificates_ == nullptr) return;
  const absl::StatusOr<bool> refreshed = certificates_->Refresh();
  if (!refreshed.ok()) {
    LogLine(LogLevel::kError, "the new certificates are not taken, the old ones stay")
        .With("error", std::string(refreshed.status().message()));
  } else if (*refreshed) {
    LogLine(LogLevel::kInfo, "new certificates")
        .With("expire", absl::FormatTime(certificates_->expiry(), absl::UTCTimeZone()));
  }
  services_.metrics->SetCertificateExpiry(certificates_->expiry());
}

absl::Status GrpcServer::ReplaceCertificates(const TlsConfig& config) {
  if (certificates_ == nullptr || !config.enabled()) {
    if (config.enabled() == (certificates_ != nullptr)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "listen.tls.certificate: to begin or to end TLS takes a restart");
  }
  return certificates_->Replace(config);
}

void GrpcServer::Shutdown(absl::Time deadline) {
  EndWatches();
  for (const auto& port : ports_) port->StopAccepting();
  for (const auto& port : ports_) port->Shutdown(deadline);
}

}  // namespace skein::server
