#pragma once
// One RPC at the transport. All methods are served through gRPC's generic service: it hands a call
// over with its headers, where it hands over a registered method's only once the message is there.
// So a call is counted among those of its connection and its caller known before anything is read
// for it, and who may not call makes the server read nothing.

#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/generic/async_generic_service.h"
#include "server/call.h"
#include "server/wire.h"

namespace skein::server {

using Bytes = grpc::ByteBuffer;

// What goes on on a call after its request has come.
class RpcStream {
 public:
  virtual ~RpcStream() = default;
  virtual void OnWriteDone(bool ok) = 0;
  // The client is gone or its deadline has passed; never before the handler has returned.
  virtual void OnCancel() = 0;
  // After everything else; may delete this.
  virtual void OnDone() = 0;
};

// Takes the request, which is empty when the caller may not call; then Call::Parse says so. Sees to
// it that the call ends, now or later: call.rpc()->Finish, or a stream that does.
using RpcHandler = std::function<void(Call call, const Bytes& in)>;

// Reads the one request, hands it to the method's handler, and passes on what becomes of writes.
class Rpc final : public grpc::ServerGenericBidiReactor {
 public:
  // `handler` outlives the call.
  Rpc(const ServiceContext& services, Method method, grpc::CallbackServerContext* context,
      const RpcHandler& handler);
  void Begin();

  // The end of a unary RPC.
  void AnswerWith(Bytes response, grpc::Status status) {
    response_ = std::move(response);
    StartWriteAndFinish(&response_, grpc::WriteOptions(), std::move(status));
  }
  // By the handler, before it writes: `stream` is told from now on. nullptr: none after all.
  void SetStream(RpcStream* stream);

 private:
  void Handle();
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override { stream()->OnWriteDone(ok); }
  void OnCancel() override;
  void OnDone() override;
  RpcStream* stream() const {
    absl::MutexLock lock(&mu_);
    return stream_;
  }

  grpc::CallbackServerContext* const context_;
  const RpcHandler& handler_;
  Call call_;
  Bytes request_, response_;
  mutable absl::Mutex mu_;
  RpcStream* stream_ ABSL_GUARDED_BY(mu_) = nullptr;  // lives until its OnDone
  bool handled_ ABSL_GUARDED_BY(mu_) = false;         // the handler has returned
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

// The end of a call that failed before any header was sent, so that the client's retry policy
// applies. `refused`: as in Call::End.
void Refuse(Call& call, const absl::Status& status, bool refused = true);

// The end of a unary RPC.
void Answer(Call& call, const absl::Status& status, const google::protobuf::Message& response);

// A unary RPC: parse, `handler([const Call&,] const Request&, Response*) -> absl::Status`, answer.
// Handlers are quick.
template <typename Request, typename Response, typename Handler>
void Unary(Call call, const Bytes& in, Handler handler) {
  Request request;
  Response response;
  absl::Status status = call.Parse(in, &request);
  if (status.ok()) {
    if constexpr (std::is_invocable_v<Handler, const Call&, const Request&, Response*>) {
      status = handler(call, request, &response);
    } else {
      status = handler(request, &response);
    }
  }
  Answer(call, status, response);
}

// What serves the methods of a service. Names are the API's, string literals.
struct Service {
  const char* name;
  std::vector<std::pair<const char*, RpcHandler>> methods;
};

// A member function as a handler.
template <typename T>
RpcHandler HandlerOf(T* service, void (T::*method)(Call, const Bytes&)) {
  return [service, method](Call call, const Bytes& in) { (service->*method)(std::move(call), in); };
}

}  // namespace skein::server
