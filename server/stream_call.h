#pragma once
// A streaming RPC: joins an Outbox (what to send, when to finish) with gRPC's reactor (how).
// Producers call Push and End from any thread, before and after gRPC knows the reactor.

#include <memory>
#include <utility>

#include "server/call.h"
#include "server/outbox.h"

namespace skein::server {

// Two owners: gRPC until OnDone (through self_), and whoever produces events, until its last one.
template <typename Event>
class StreamCall : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                   public std::enable_shared_from_this<StreamCall<Event>> {
 public:
  // `call` has started; `max_tokens` bounds the outbox.
  StreamCall(Call call, int64_t max_tokens) : call_(std::move(call)), outbox_(max_tokens) {}

  // Before gRPC gets the reactor: it stays alive until OnDone.
  void Hold() { self_ = this->shared_from_this(); }
  // After Hold: the request was refused, gRPC does not get the reactor, nothing was pushed.
  void Release() { self_.reset(); }

 protected:
  void Push(Event event, int64_t tokens) {
    Apply(outbox_.Push(std::move(event), tokens, absl::Now()));
  }
  void End(absl::Status status) { Apply(outbox_.End(std::move(status))); }
  bool HasRoom() const { return outbox_.writable(); }
  const Call& call() const { return call_; }

  // The transport was cancelled (client gone, or its deadline passed): stop producing.
  virtual void OnGone() = 0;
  // The stream ends with `status`; exactly once, from the thread that ends it.
  virtual void OnEnd(const absl::Status& status) = 0;

 private:
  using Action = typename Outbox<Event>::Action;

  void OnWriteDone(bool ok) final { Apply(outbox_.WriteDone(ok)); }
  void OnCancel() final {
    OnGone();
    Apply(outbox_.Drop(call_.deadline_passed()
                           ? absl::DeadlineExceededError("the deadline of the call has passed")
                           : absl::CancelledError("the client is gone")));
  }
  void OnDone() final { self_.reset(); }  // may delete this

  // After a start call another thread may finish the stream, so nothing of this object is touched
  // after it.
  void Apply(Action action) {
    if (action.kind == Action::kNothing) return;
    if (action.kind != Action::kFinish) Serialize(action.event, &writing_);
    if (action.kind == Action::kWrite) {
      this->StartWrite(&writing_);
      return;
    }
    OnEnd(action.status);
    grpc::Status status = call_.End(action.status);
    if (action.kind == Action::kFinish) {
      this->Finish(std::move(status));
    } else {
      this->StartWriteAndFinish(&writing_, grpc::WriteOptions(), std::move(status));
    }
  }

  Call call_;
  Outbox<Event> outbox_;
  grpc::ByteBuffer writing_;  // belongs to the write in flight
  std::shared_ptr<StreamCall> self_;
};

}  // namespace skein::server
