#pragma once
// A streaming RPC: joins what there is to send (an outbox, or a request's record) with the
// transport. Producers act on it from any thread, as soon as it is held.

#include <memory>
#include <utility>

#include "server/outbox.h"
#include "server/rpc.h"

namespace skein::server {

// Two owners: the RPC until OnDone (through self_), and whoever produces events, until its last
// one.
template <typename Event>
class StreamCall : public RpcStream, public std::enable_shared_from_this<StreamCall<Event>> {
 public:
  explicit StreamCall(Call call) : call_(std::move(call)) {}  // `call` has started

  // By the handler, first: it stays alive until OnDone.
  void Hold() {
    self_ = this->shared_from_this();
    call_.rpc()->SetStream(this);
  }
  // After Hold: the request was refused, no action was applied.
  void Release() {
    call_.rpc()->SetStream(nullptr);
    self_.reset();
  }

 protected:
  using Action = WriteAction<Event>;

  const Call& call() const { return call_; }

  // After a start call another thread may finish the stream, so nothing of this object is touched
  // after it. `refused`: finished before any event, as a request that was turned away.
  void Apply(Action action, bool refused = false) {
    if (action.kind == Action::kNothing) return;
    if (action.kind != Action::kFinish) Serialize(action.event, &writing_);
    if (action.kind == Action::kWrite) {
      call_.rpc()->StartWrite(&writing_);
      return;
    }
    OnEnd(action.status);
    grpc::Status status = call_.End(action.status, refused);
    if (action.kind == Action::kFinish) {
      call_.rpc()->Finish(std::move(status));
    } else {
      call_.rpc()->StartWriteAndFinish(&writing_, grpc::WriteOptions(), std::move(status));
    }
  }

  // Why the transport is gone.
  absl::Status GoneStatus() const {
    return call_.deadline_passed()
               ? absl::DeadlineExceededError("the deadline of the call has passed")
               : absl::CancelledError("the client is gone");
  }

  // The write told last is done; `ok` false: the transport is gone, and Gone may come too, before
  // or after.
  virtual Action Written(bool ok) = 0;
  // The transport was cancelled (client gone, or its deadline passed): stop producing, finish with
  // `status`.
  virtual Action Gone(const absl::Status& status) = 0;
  // The stream ends with `status`; exactly once, from the thread that ends it.
  virtual void OnEnd(const absl::Status& status) = 0;

 private:
  void OnWriteDone(bool ok) final { Apply(Written(ok)); }
  void OnCancel() final { Apply(Gone(GoneStatus())); }
  void OnDone() final { self_.reset(); }  // may delete this

  Call call_;
  grpc::ByteBuffer writing_;  // belongs to the write in flight
  std::shared_ptr<StreamCall> self_;
};

}  // namespace skein::server
