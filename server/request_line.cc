#include "server/request_line.h"

#include <string>

#include "server/status.h"

namespace skein::server {
namespace {

std::string EndName(v1::FinishReason reason) {
  return v1::FinishReason_Name(reason).substr(sizeof("FINISH_REASON"));
}

// How far it came.
const char* PhaseOf(const RecordSummary& summary) {
  if (summary.completion_tokens > 0) return "decode";
  return summary.started ? "prefill" : "waiting";
}

double Seconds(const google::protobuf::Duration& d) {
  return static_cast<double>(d.seconds()) + d.nanos() * 1e-9;
}

}  // namespace

void Describe(const RequestRecord& record, LogLine* line) {
  const RequestSpec& spec = record.spec();
  const RecordSummary summary = record.summary();
  line->With("model", spec.model);
  if (!spec.conversation_id.empty()) line->With("conversation", spec.conversation_id);
  line->With("phase", PhaseOf(summary));
  if (!summary.finished.has_value()) {
    line->With("tokens", summary.completion_tokens);
    return;
  }
  const v1::Finished& finished = *summary.finished;
  const v1::Timings& t = finished.timings();
  if (finished.committed()) line->With("version", finished.version());
  line->With("end", EndName(finished.reason()))
      .With("prompt_tokens", finished.usage().prompt_tokens())
      .With("reused_tokens", finished.usage().reused_tokens())
      .With("tokens",
            spec.sequences == 1 ? finished.usage().completion_tokens() : summary.completion_tokens)
      .With("queue_seconds", Seconds(t.queue()))
      .With("restore_seconds", Seconds(t.restore()))
      .With("prefill_seconds", Seconds(t.prefill()))
      .With("ttft_seconds", Seconds(t.time_to_first_token()))
      .With("decode_seconds", Seconds(t.decode()));
}

void LogUnread(const RequestRecord& record) {
  const absl::Status status = record.summary().status;
  LogLine line(LogLevel::kInfo, "request ended without a reader");
  line.With("id", record.spec().request_id);
  if (!record.spec().tenant.empty()) line.With("tenant", record.spec().tenant);
  line.With("code", CodeName(status.code()));
  if (!status.ok()) line.With("reason", ReasonOf(status));
  Describe(record, &line);
}

}  // namespace skein::server
