#pragma once
// A channel to one skeind and the stubs of its services. Connects when the first call is made.

#include <chrono>
#include <memory>
#include <string>

#include "client/security.h"
#include "grpcpp/grpcpp.h"
#include "skein/v1/control.grpc.pb.h"
#include "skein/v1/conversations.grpc.pb.h"
#include "skein/v1/generation.grpc.pb.h"
#include "skein/v1/info.grpc.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

class Connection {
 public:
  // Connections of one process to one server share a socket, unless they want their `own_socket`.
  explicit Connection(const std::string& server, const Security& security = {},
                      bool own_socket = false);

  v1::Generation::Stub& generation() { return *generation_; }
  v1::Conversations::Stub& conversations() { return *conversations_; }
  v1::Info::Stub& info() { return *info_; }
  v1::Control::Stub& control() { return *control_; }

  // A call with one answer, with a deadline. connection.Call(connection.info(),
  // &v1::Info::Stub::ListModels, ...)
  template <typename Stub, typename Request, typename Response>
  grpc::Status Call(Stub& stub,
                    grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                    const Request& request, Response* response) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kCallTimeout);
    return (stub.*method)(&context, request, response);
  }

  // A conversation, with all pages of its versions when the view is HISTORY.
  grpc::Status GetConversation(const std::string& id, v1::View view,
                               v1::Conversation* conversation);

 private:
  static constexpr std::chrono::seconds kCallTimeout{30};
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> generation_;
  std::unique_ptr<v1::Conversations::Stub> conversations_;
  std::unique_ptr<v1::Info::Stub> info_;
  std::unique_ptr<v1::Control::Stub> control_;
};

}  // namespace skein::client
