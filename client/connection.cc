#include "client/connection.h"

namespace skein::client {

Connection::Connection(const std::string& server) {
  grpc::ChannelArguments arguments;
  // A history with its token ids can be longer than gRPC's default of 4 MiB.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetUserAgentPrefix("skein");
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  channel_ = grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
  generation_ = v1::Generation::NewStub(channel_);
  conversations_ = v1::Conversations::NewStub(channel_);
  info_ = v1::Info::NewStub(channel_);
}

}  // namespace skein::client
