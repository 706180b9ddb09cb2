#include "server/grpc_server.h"

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "google/protobuf/stubs/logging.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"

namespace skein::server {
namespace {

int Milliseconds(double seconds) { return static_cast<int>(seconds * 1000); }

void SetLimits(const ListenConfig& c, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(static_cast<int>(c.max_message_bytes));
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(c.max_metadata_bytes));
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(c.max_streams));
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT,
                              0);  // a second daemon must not share the port
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(c.keepalive_seconds));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                              Milliseconds(c.min_client_ping_seconds));
  if (c.max_connection_age_seconds > 0) {
    builder->AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS,
                                Milliseconds(c.max_connection_age_seconds));
  }
}

}  // namespace

void InitGrpc() {
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // we report errors ourselves
  google::protobuf::SetLogHandler(nullptr);
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
}

GrpcServer::GrpcServer(const ServiceContext& services, const kernels::DeviceInfo& device,
                       v1::Model model)
    : generation_(services), conversations_(services), info_(services, device, std::move(model)) {}

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ServiceContext& services,
                                                              const kernels::DeviceInfo& device,
                                                              v1::Model model) {
  const ListenConfig& listen = services.config->listen;
  auto out = std::unique_ptr<GrpcServer>(new GrpcServer(services, device, std::move(model)));
  grpc::ServerBuilder builder;
  SetLimits(listen, &builder);
  int port = 0;
  builder.AddListeningPort(listen.address, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&out->generation_);
  builder.RegisterService(&out->conversations_);
  builder.RegisterService(&out->info_);
  out->server_ = builder.BuildAndStart();
  if (out->server_ == nullptr || port <= 0) {
    return absl::UnavailableError(absl::StrCat("listen.address: cannot listen on '", listen.address,
                                               "': is the port in use, or the address not one of "
                                               "this machine?"));
  }
  const bool has_port = listen.address.rfind(':') != std::string::npos;
  out->address_ = has_port
                      ? absl::StrCat(listen.address.substr(0, listen.address.rfind(':') + 1), port)
                      : listen.address;
  out->SetServing(false);
  return out;
}

GrpcServer::~GrpcServer() {
  if (server_ != nullptr) Shutdown(absl::Now());
}

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
  for (const char* name :
       {"", GenerationService::kName, ConversationsService::kName, InfoService::kName}) {
    health->SetServingStatus(name, serving);
  }
}

void GrpcServer::Shutdown(absl::Time deadline) {
  server_->Shutdown(absl::ToChronoTime(deadline));
  server_->Wait();
}

}  // namespace skein::server
