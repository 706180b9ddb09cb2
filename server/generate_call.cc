#include "server/generate_call.h"

#include <utility>

#include "engine/base/check.h"
#include "server/request_line.h"

namespace skein::server {

void LogRefused(const Call& call, const absl::Status& status, const std::string& request_id) {
  LogLine line(Call::LevelOf(status), "request");
  line.With("id", request_id);
  call.Log(line, status);
}

absl::Status GenerateCall::Submit(const std::shared_ptr<RequestRecord>& record,
                                  const Start& start) {
  engine::GenerateRequest request = start.request;
  request.tenant = start.spec.tenant;
  request.quotas = call().principal().quotas;
  request.request_id = EngineRequestId(start.spec.tenant, start.spec.request_id);
  // With FINISH the deadline is the stream's: when it passes, the client is gone and the turn is
  // not.
  if (!start.spec.finish) request.deadline = call().deadline();
  submitted_ = true;
  const RequestRecord::Sinks sinks =
      record->Begin([model = start.model, id = request.request_id](bool by_client) {
        return model.engine().Cancel(id, by_client);
      });
  return start.model.engine().Submit(std::move(request), sinks);
}

absl::Status GenerateCall::Generate(Start start) {
  RequestLog& log = *call().services().requests;
  auto self = std::static_pointer_cast<GenerateCall>(shared_from_this());
  while (true) {
    SKEIN_ASSIGN_OR_RETURN(const RequestLog::Opened opened, log.Open(start.spec));
    if (opened.how == RequestLog::Opened::kEnding) {
      {
        const std::lock_guard lock(mu_);
        waiting_ = start;
      }
      if (opened.record->WhenEnded([self] { self->Resume(); })) return absl::OkStatus();
      continue;  // it has ended meanwhile
    }
    if (opened.how == RequestLog::Opened::kNew) {
      if (absl::Status s = Submit(opened.record, start); !s.ok()) {
        log.Refuse(opened.record, s);
        return s;
      }
    }
    return Join(opened.record);
  }
}

absl::Status GenerateCall::Join(std::shared_ptr<RequestRecord> record) {
  return Read(std::move(record), /*after_token=*/0);
}

absl::Status GenerateCall::Attach(const v1::AttachRequest& request) {
  SKEIN_ASSIGN_OR_RETURN(
      std::shared_ptr<RequestRecord> record,
      call().services().requests->Find(call().principal().tenant, request.request_id()));
  return Read(std::move(record), request.after_token());
}

absl::Status GenerateCall::Read(std::shared_ptr<RequestRecord> record, int64_t after_token) {
  auto self = std::static_pointer_cast<GenerateCall>(shared_from_this());
  SKEIN_RETURN_IF_ERROR(record->Attach(self, after_token));
  {
    const std::lock_guard lock(mu_);
    if (!gone_) {
      record_ = std::move(record);
      reading_ = record_.get();
      return absl::OkStatus();
    }
  }
  // The client went while its request waited for its turn: the stream is finished already.
  record->Gone(*this, absl::CancelledError("the client is gone"), /*end_turn=*/true);
  return absl::OkStatus();
}

void GenerateCall::Resume() {
  std::optional<Start> start;
  {
    const std::lock_guard lock(mu_);
    if (gone_) return;
    start.swap(waiting_);
  }
  const absl::Status status = Generate(*std::move(start));
  if (status.ok()) {
    OnReady();
    return;
  }
  {
    const std::lock_guard lock(mu_);
    if (std::exchange(gone_, true)) return;
  }
  Action action;
  action.kind = Action::kFinish;
  action.status = status;
  Apply(std::move(action), /*refused=*/true);
}

void GenerateCall::OnReady() {
  RequestRecord* record = reading_.load(std::memory_order_acquire);
  if (record != nullptr) Apply(record->Next(*this));
}

GenerateCall::Action GenerateCall::Written(bool ok) {
  RequestRecord* record = reading_.load();
  if (ok) return record->WriteDone(*this);
  return record->Gone(*this, GoneStatus(), /*end_turn=*/!EngineEndsIt(), /*in_write=*/true);
}

GenerateCall::Action GenerateCall::Gone(const absl::Status& status) {
  {
    const std::lock_guard lock(mu_);
    if (record_ == nullptr) {  // it waits
      Action action;
      if (std::exchange(gone_, true)) return action;
      waiting_.reset();
      action.kind = Action::kFinish;
      action.status = status;
      return action;
    }
  }
  return reading_.load()->Gone(*this, status, /*end_turn=*/!EngineEndsIt());
}

void GenerateCall::OnEnd(const absl::Status& status) {
  LogLine line(status.ok() ? LogLevel::kInfo : Call::LevelOf(status), "request");
  line.With("id", request_id_);
  call().Log(line, status);
  const std::lock_guard lock(mu_);
  if (record_ != nullptr) Describe(*record_, &line);
}

}  // namespace skein::server
