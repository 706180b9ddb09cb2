#include "server/rpc.h"

#include "server/status.h"

namespace skein::server {

Rpc::Rpc(const ServiceContext& services, Method method, grpc::CallbackServerContext* context,
         const RpcHandler& handler)
    : context_(context), handler_(handler), call_(services, method, context, this) {}

void Rpc::Begin() {
  if (call_.access().ok()) {
    StartRead(&request_);
  } else {
    Handle();
  }
}

void Rpc::SetStream(RpcStream* stream) {
  absl::MutexLock lock(&mu_);
  stream_ = stream;
}

// A client that goes while its request is handled is told to the stream after that, so that no
// handler has to expect it.
void Rpc::Handle() {
  handler_(call_, request_);
  RpcStream* stream = nullptr;
  {
    absl::MutexLock lock(&mu_);
    handled_ = true;
    if (cancelled_) stream = stream_;
  }
  if (stream != nullptr) stream->OnCancel();
}

void Rpc::OnReadDone(bool ok) {
  if (ok) {
    call_.RequestCame();
    return Handle();
  }
  absl::Status status;
  if (call_.deadline_passed()) {
    status = absl::DeadlineExceededError("the deadline of the call passed before its request came");
  } else if (context_->IsCancelled()) {
    status = absl::CancelledError("the client went before its request came");
  } else {
    status = base::MakeStatus(absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                              "the call ended without a request");
  }
  LogLine line(Call::LevelOf(status), "rpc");
  call_.Log(line, status);
  Finish(call_.End(status));
}

void Rpc::OnCancel() {
  RpcStream* stream = nullptr;
  {
    absl::MutexLock lock(&mu_);
    cancelled_ = true;
    if (handled_) stream = stream_;
  }
  if (stream != nullptr) stream->OnCancel();
}

void Rpc::OnDone() {
  if (RpcStream* stream = this->stream(); stream != nullptr) stream->OnDone();
  delete this;
}

void Refuse(Call& call, const absl::Status& status, bool refused) {
  grpc::Status end = call.End(status, refused);
  call.rpc()->Finish(std::move(end));
}

void Answer(Call& call, const absl::Status& status, const google::protobuf::Message& response) {
  LogLine line(Call::LevelOf(status), "rpc");
  call.Log(line, status);
  if (!status.ok()) return Refuse(call, status, /*refused=*/false);
  Bytes out;
  Serialize(response, &out);
  call.rpc()->AnswerWith(std::move(out), call.End(status));
}

}  // namespace skein::server
