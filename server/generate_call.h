#pragma once
// One stream of responses: the reader of a request's record, for Generate and for Attach.

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "engine/request.h"
#include "server/request_log.h"
#include "server/stream_call.h"

namespace skein::server {

class GenerateCall final : public StreamCall<v1::GenerateResponse>, public RecordReader {
 public:
  // What a Generate brings along.
  struct Start {
    ModelUse model;
    RequestSpec spec;
    engine::GenerateRequest request;
  };

  GenerateCall(Call call, std::string request_id)
      : StreamCall(std::move(call)), request_id_(std::move(request_id)) {}

  // Runs the request, joins the run that goes on, or replays its result. When a run of the same id
  // is about to end because its client is gone, waits for that first. An error refuses the call.
  absl::Status Generate(Start start);
  // A request of the same id, as it runs or is kept.
  absl::Status Join(std::shared_ptr<RequestRecord> record);
  absl::Status Attach(const v1::AttachRequest& request);
  // After one of them, once the stream may act; also called by the record.
  void OnReady() override;

 private:
  Action Written(bool ok) override;
  Action Gone(const absl::Status& status) override;
  void OnEnd(const absl::Status& status) override;

  absl::Status Submit(const std::shared_ptr<RequestRecord>& record, const Start& start);
  absl::Status Read(std::shared_ptr<RequestRecord> record, int64_t after_token);
  // The engine ends what this call has submitted at this call's deadline by itself.
  bool EngineEndsIt() const { return submitted_ && call().deadline_passed(); }
  void Resume();  // the run that was waited for has ended

  const std::string request_id_;
  std::atomic<bool> submitted_{false};

  std::mutex mu_;
  std::optional<Start> waiting_ ABSL_GUARDED_BY(mu_);
  bool gone_ ABSL_GUARDED_BY(mu_) = false;  // before it could read anything
  std::shared_ptr<RequestRecord> record_ ABSL_GUARDED_BY(mu_);
  std::atomic<RequestRecord*> reading_{nullptr};  // record_, once actions may be taken
};

// The log line of a request that was refused before it had a record.
void LogRefused(const Call& call, const absl::Status& status, const std::string& request_id);

}  // namespace skein::server
