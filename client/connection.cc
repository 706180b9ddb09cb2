#include "client/connection.h"

namespace skein::client {

Connection::Connection(const std::string& server, const Security& security, bool own_socket) {
  grpc::ChannelArguments arguments;
  // A history with its token ids can be longer than gRPC's default of 4 MiB.
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetUserAgentPrefix("skein");
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, own_socket ? 1 : 0);
  channel_ = security.Connect(server, arguments);
  generation_ = v1::Generation::NewStub(channel_);
  conversations_ = v1::Conversations::NewStub(channel_);
  info_ = v1::Info::NewStub(channel_);
  control_ = v1::Control::NewStub(channel_);
}

grpc::Status Connection::GetConversation(const std::string& id, v1::View view,
                                         v1::Conversation* conversation) {
  v1::GetConversationRequest request;
  request.set_id(id);
  request.set_view(view);
  conversation->Clear();
  do {
    v1::Conversation page;
    const grpc::Status status =
        Call(*conversations_, &v1::Conversations::Stub::Get, request, &page);
    if (!status.ok()) return status;
    page.mutable_versions()->Swap(conversation->mutable_versions());
    for (v1::Version& version : *conversation->mutable_versions()) {
      *page.add_versions() = std::move(version);
    }
    *conversation = std::move(page);
    request.set_page_token(conversation->next_page_token());
  } while (!request.page_token().empty());
  return grpc::Status::OK;
}

}  // namespace skein::client
