#pragma once
// The gRPC side of the daemon: services, health, reflection, limits of the transport, and one
// checked port.

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server.h"
#include "server/conversations_service.h"
#include "server/generation_service.h"
#include "server/info_service.h"

namespace skein::server {

// Once, before anything of gRPC is made: quiet libraries, health and reflection on.
void InitGrpc();

class GrpcServer {
 public:
  // Listens and serves, health NOT_SERVING. An address that cannot be bound is an error that names
  // it.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const ServiceContext& services,
                                                           const kernels::DeviceInfo& device,
                                                           v1::Model model);
  ~GrpcServer();

  // With the real port.
  const std::string& address() const { return address_; }
  // Health of all services. Thread-safe.
  void SetServing(bool serving);
  // Accepts nothing new, lets running calls end until `deadline`, then cancels them. Blocks until
  // all are gone.
  void Shutdown(absl::Time deadline);

 private:
  GrpcServer(const ServiceContext& services, const kernels::DeviceInfo& device, v1::Model model);

  GenerationService generation_;
  ConversationsService conversations_;
  InfoService info_;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace skein::server
