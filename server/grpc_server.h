#pragma once
// The gRPC side of the daemon: the ports, the services at each, health, reflection, certificates,
// limits of the transport.

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "grpcpp/resource_quota.h"
#include "server/connection_table.h"
#include "server/control_service.h"
#include "server/conversations_service.h"
#include "server/generation_service.h"
#include "server/health_service.h"
#include "server/info_service.h"
#include "server/listener.h"
#include "server/tls.h"

namespace skein::server {

// Once, before anything of gRPC is made: quiet libraries that do not check themselves.
void InitGrpc();

// Connections at once: as the configuration says, or what the limit of open files leaves, which is
// raised as far as it goes.
int64_t ConnectionLimit(const ListenConfig& listen);
// What the connections of this configuration may do.
ConnectionLimits LimitsOf(const ServerConfig& config);

class GrpcServer {
 public:
  // Listens and serves, health NOT_SERVING. An address that cannot be bound is an error that names
  // it.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const ServiceContext& services);
  ~GrpcServer();

  // With the real port.
  const std::string& address() const;
  // Of Control; empty when it is with the other services.
  std::string control_address() const;
  // The full names of the services at all ports.
  std::vector<std::string> service_names() const;
  // Health of all services. Thread-safe.
  void SetServing(bool serving) { health_.SetServing(serving); }
  // Once a second: takes up certificates that were replaced, publishes gauges.
  void Maintain();
  // Certificates of a new configuration. Those that work stay when these do not.
  absl::Status ReplaceCertificates(const TlsConfig& config);
  // Ends what would otherwise last as long as the client likes: watches of the health.
  void EndWatches() { health_.Close(); }
  // Accepts nothing new, lets running calls end until `deadline`, then cancels them. Blocks until
  // all are gone.
  void Shutdown(absl::Time deadline);

 private:
  class Port;

  GrpcServer(const ServiceContext& services, const ServerConfig& config);
  absl::Status Open(const ListenConfig& listen);
  void WatchConnections();
  absl::Status OpenPort(const char* key, const std::string& address, const ListenConfig& listen,
                        std::vector<Service> served);

  // Constant after Start, or with their own synchronisation. Ports go first, they use the others.
  const ServiceContext services_;
  GenerationService generation_;
  ConversationsService conversations_;
  InfoService info_;
  ControlService control_;
  HealthBoard health_;
  RefusedConnections refused_;
  // As published; Maintain's thread.
  int64_t told_limit_ = 0, told_descriptors_ = 0, told_aborted_ = 0, told_hoarders_ = 0;
  grpc::ResourceQuota quota_;
  std::unique_ptr<CertificateSource> certificates_;  // nullptr: no TLS
  std::vector<std::unique_ptr<Port>> ports_;         // the public one first
  absl::Notification stopped_;
  std::thread watch_;  // of the connections; ends with stopped_
};

}  // namespace skein::server
