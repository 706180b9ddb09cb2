#include "server/generate_call.h"

#include <utility>

namespace skein::server {

GenerateCall::GenerateCall(Call call, std::string request_id, OutputChoice output)
    : StreamCall(std::move(call), call.services().config->limits.outbox_tokens),
      request_id_(std::move(request_id)),
      output_(output) {}

void GenerateCall::OnQueued(int64_t position) {
  v1::GenerateResponse response;
  response.mutable_queued()->set_position(position);
  Push(std::move(response), 0);
}

void GenerateCall::OnStarted(const engine::StartedEvent& event) {
  v1::GenerateResponse response;
  *response.mutable_started() = ToProto(event, request_id_);
  Push(std::move(response), 0);
}

void GenerateCall::OnProgress(const engine::ProgressEvent& event) {
  v1::GenerateResponse response;
  response.mutable_progress()->set_prefill_done(event.done);
  response.mutable_progress()->set_prefill_total(event.total);
  Push(std::move(response), 0);
}

void GenerateCall::OnOutput(std::vector<engine::TokenEvent> tokens, std::string text) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  v1::GenerateResponse response;
  v1::Delta* delta = response.mutable_delta();
  *delta = call().services().converter->ToProto(tokens, std::move(text), output_);
  if (delta->text().empty() && delta->tokens().empty()) return;
  Push(std::move(response), count);
}

void GenerateCall::OnFinished(const engine::FinishedEvent& event) {
  {
    absl::MutexLock lock(&mu_);
    finished_ = event;
  }
  v1::GenerateResponse response;
  *response.mutable_finished() = ToProto(event);
  Push(std::move(response), 0);
  End(absl::OkStatus());
}

void GenerateCall::OnError(const absl::Status& status) { End(status); }

void GenerateCall::OnGone() {
  // When it is the deadline that passed, the engine has seen it too and says so in the
  // conversation.
  if (!call().deadline_passed()) call().services().engine->Cancel(request_id_, /*by_client=*/false);
}

void GenerateCall::OnEnd(const absl::Status& status) {
  const LogLevel level = status.ok() ? LogLevel::kInfo : Call::LevelOf(status);
  LogLine line(level, "request");
  line.With("id", request_id_);
  call().Log(line, status);
  absl::MutexLock lock(&mu_);
  if (!finished_.has_value()) return;
  const engine::Timings& t = finished_->timings;
  line.With("end",
            v1::FinishReason_Name(ToProto(finished_->reason)).substr(sizeof("FINISH_REASON")))
      .With("prompt_tokens", finished_->usage.prompt_tokens)
      .With("tokens", finished_->usage.completion_tokens)
      .With("queue_seconds", absl::ToDoubleSeconds(t.queue))
      .With("ttft_seconds", absl::ToDoubleSeconds(t.time_to_first_token))
      .With("decode_seconds", absl::ToDoubleSeconds(t.decode));
}

}  // namespace skein::server
