// Responses: engine -> proto.

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/convert.h"

namespace skein::server {
namespace {

void SetTimestamp(absl::Time time, google::protobuf::Timestamp* out) {
  const int64_t nanos = absl::ToUnixNanos(time);
  int64_t seconds = nanos / 1000000000;
  int64_t rest = nanos % 1000000000;
  if (rest < 0) {
    rest += 1000000000;
    --seconds;
  }
  out->set_seconds(seconds);
  out->set_nanos(static_cast<int32_t>(rest));
}

// As a version has it: the end's name, or the name of the status that its client was told.
v1::FinishReason ReasonFromName(absl::string_view name) {
  if (name == "stop") return v1::FINISH_REASON_STOP;
  if (name == "length") return v1::FINISH_REASON_LENGTH;
  if (name == "time") return v1::FINISH_REASON_TIME;
  if (name == "cancelled") return v1::FINISH_REASON_CANCELLED;
  if (name == "drained") return v1::FINISH_REASON_DRAINED;
  if (name == "CANCELLED") return v1::FINISH_REASON_DISCONNECTED;
  if (name == "DEADLINE_EXCEEDED") return v1::FINISH_REASON_DEADLINE;
  return v1::FINISH_REASON_UNSPECIFIED;
}

void SetBytes(absl::string_view bytes, std::string* out) {
  out->assign(bytes.data(), bytes.size());
}

}  // namespace

std::string ToUtf8(absl::string_view bytes) {
  engine::Utf8Stream stream;
  std::string out;
  stream.Push(bytes, &out);
  stream.Finish(&out);
  return out;
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  out->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
}

v1::FinishReason ToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kTime:
      return v1::FINISH_REASON_TIME;
    case engine::FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case engine::FinishReason::kDrained:
      return v1::FINISH_REASON_DRAINED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::Started ToProto(const engine::StartedEvent& event, absl::string_view request_id) {
  v1::Started out;
  out.set_request_id(std::string(request_id));
  out.set_conversation_id(event.conversation_id);
  out.set_version(event.version);
  out.set_created(event.created);
  out.set_tokens_reused(event.tokens_reused);
  out.set_restored_from(event.restored_from);
  out.set_seed(event.seed);
  return out;
}

v1::Finished ToProto(const engine::FinishedEvent& event) {
  v1::Finished out;
  out.set_reason(ToProto(event.reason));
  out.set_stop_string(event.stop_match);
  if (event.stop_token.has_value()) out.set_stop_token_id(*event.stop_token);
  v1::Usage* usage = out.mutable_usage();
  usage->set_prompt_tokens(event.usage.prompt_tokens);
  usage->set_completion_tokens(event.usage.completion_tokens);
  usage->set_reused_tokens(event.usage.reused_tokens);
  usage->set_conversation_tokens(event.usage.conversation_tokens);
  v1::Timings* timings = out.mutable_timings();
  ToProto(event.timings.queue, timings->mutable_queue());
  ToProto(event.timings.restore, timings->mutable_restore());
  ToProto(event.timings.prefill, timings->mutable_prefill());
  ToProto(event.timings.time_to_first_token, timings->mutable_time_to_first_token());
  ToProto(event.timings.decode, timings->mutable_decode());
  ToProto(event.timings.mean_inter_token, timings->mutable_mean_inter_token());
  out.set_committed(event.committed);
  out.set_version(event.version);
  return out;
}

// Ids of clients have no control characters.
constexpr char kAfterTenant = '\x1f';

std::string EngineRequestId(absl::string_view tenant, absl::string_view request_id) {
  if (tenant.empty()) return std::string(request_id);
  return absl::StrCat(tenant, std::string(1, kAfterTenant), request_id);
}

std::string ShownRequestId(absl::string_view engine_id) {
  const size_t end = engine_id.find(kAfterTenant);
  return std::string(end == absl::string_view::npos ? engine_id : engine_id.substr(end + 1));
}

std::string FingerprintText(uint64_t fingerprint) {
  return absl::StrCat(absl::Hex(fingerprint, absl::kZeroPad16));
}

v1::Finished ToFailed(const absl::Status& error) {
  v1::Finished out;
  out.set_reason(v1::FINISH_REASON_ERROR);
  out.mutable_error()->set_code(static_cast<int32_t>(error.code()));
  out.mutable_error()->set_reason(ReasonOf(error));
  out.mutable_error()->set_message(std::string(error.message()));
  if (const auto version = engine::CommittedVersion(error); version.has_value()) {
    out.set_committed(true);
    out.set_version(*version);
  }
  return out;
}

v1::Token ToProto(const engine::TokenEvent& event, const engine::Tokenizer& tokenizer,
                  const OutputChoice& choice) {
  v1::Token out;
  out.set_id(event.token);
  SetBytes(tokenizer.Bytes(event.token), out.mutable_bytes());
  // A token that was encoded again in place of one cut by a stop string was never scored.
  if (choice.logprobs && !std::isnan(event.logprob)) out.set_logprob(event.logprob);
  for (const kernels::TokenValue& top : event.top) {
    v1::TopToken* t = out.add_top();
    t->set_id(top.token);
    SetBytes(tokenizer.Bytes(top.token), t->mutable_bytes());
    t->set_logprob(top.value);
  }
  ToProto(event.latency, out.mutable_latency());
  return out;
}

v1::Version ToProto(const engine::VersionInfo& version, const engine::Tokenizer* tokenizer) {
  v1::Version out;
  out.set_id(version.id);
  out.set_parent(version.parent);
  if (tokenizer != nullptr) {
    out.set_input(ToUtf8(tokenizer->Decode(version.input)));
    out.set_output(ToUtf8(tokenizer->Decode(version.output)));
  }
  out.set_finish_reason(ReasonFromName(version.finish_reason));
  SetTimestamp(version.time, out.mutable_time());
  out.set_tokens(version.tokens);
  out.mutable_input_token_ids()->Add(version.input.begin(), version.input.end());
  out.mutable_output_token_ids()->Add(version.output.begin(), version.output.end());
  out.set_has_state(version.has_state);
  out.set_model_fingerprint(FingerprintText(version.model_fingerprint));
  out.set_prompt_state(version.prompt_state);
  return out;
}

v1::Conversation ToProto(const engine::ConversationInfo& info) {
  v1::Conversation out;
  out.set_id(info.id);
  out.set_head_version(info.head);
  out.set_tokens(info.tokens);
  out.set_state_bytes(info.state_bytes);
  out.set_busy(info.busy);
  SetTimestamp(info.created, out.mutable_created());
  SetTimestamp(info.used, out.mutable_used());
  if (info.ttl != absl::InfiniteDuration()) {
    ToProto(info.ttl, out.mutable_ttl());
    if (!info.busy) SetTimestamp(info.used + info.ttl, out.mutable_expires());
  }
  out.set_waiting(info.waiting);
  if (info.head != 0) out.set_model_fingerprint(FingerprintText(info.model_fingerprint));
  out.set_last_request_id(ShownRequestId(info.last_request_id));
  out.set_last_end(info.last_end);
  return out;
}

v1::Sampling ToProto(const engine::SamplingOptions& s) {
  v1::Sampling out;
  out.set_temperature(s.temperature);
  out.set_top_p(s.top_p);
  out.set_top_k(s.top_k);
  out.set_min_p(s.min_p);
  out.set_presence_penalty(s.presence_penalty);
  out.set_frequency_penalty(s.frequency_penalty);
  out.set_penalty_decay(s.penalty_decay);
  out.set_repetition_penalty(s.repetition_penalty);
  out.set_penalty_scope(v1::PENALTY_SCOPE_REQUEST);
  out.set_top_p_before_temperature(s.top_p_before_temperature);
  return out;
}

v1::Stopping ToProto(const engine::StoppingOptions& s) {
  v1::Stopping out;
  out.set_max_tokens(s.max_tokens);
  out.set_min_tokens(s.min_tokens);
  out.set_ignore_eos(s.ignore_eos);
  return out;
}

}  // namespace skein::server
