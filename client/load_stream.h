#pragma once
// One Generate of a load run as a reactor: no thread of its own. gRPC's threads read, the timers'
// thread ends it and takes up a slow reader's next read.

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "client/connection.h"
#include "client/load_plan.h"
#include "client/load_stats.h"
#include "client/load_timers.h"

namespace skein::client {

// What all streams of a run share; outlives them.
struct LoadShared {
  const LoadOptions* options = nullptr;
  LoadStats* stats = nullptr;
  Timers* timers = nullptr;
  Timers::Time measure_from, measure_to;
};

class LoadStream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  // Runs on the timers' thread; the stream may be destroyed then.
  using Done = std::function<void(const RequestOutcome&)>;

  LoadStream(const LoadShared& shared, Connection* connection, v1::GenerateRequest request,
             const RequestPlan& plan, Timers::Time intended, Done done);
  void Start();
  // The run is over.
  void Cut();

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  void OnText(Timers::Time now);
  void CountTokens(int64_t until_now, Timers::Time now);
  // What the plan wants after this many messages.
  void MaybeEnd();
  void SendCancel();

  const LoadShared& shared_;
  Connection* const connection_;
  const v1::GenerateRequest request_;
  const RequestPlan plan_;
  const Done done_;
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  // One thread at a time: gRPC calls OnReadDone and OnDone one after the other.
  RequestOutcome outcome_;
  Timers::Time last_text_{};
  std::atomic<bool> cut_{false};
};

}  // namespace skein::client
