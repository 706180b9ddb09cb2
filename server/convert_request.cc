// Whole requests: proto -> engine, with all validation.

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/convert_fields.h"
#include "server/status.h"

namespace skein::server {
namespace {

void CheckEnums(const v1::GenerateRequest& in, FieldViolations* bad) {
  if (!v1::CommitMode_IsValid(in.commit())) bad->Add("commit", "unknown value");
  if (!v1::OnDisconnect_IsValid(in.on_disconnect())) bad->Add("on_disconnect", "unknown value");
  if (!v1::OnModelMismatch_IsValid(in.on_model_mismatch())) {
    bad->Add("on_model_mismatch", "unknown value");
  }
  if (!v1::PenaltyScope_IsValid(in.sampling().penalty_scope())) {
    bad->Add("sampling.penalty_scope", "unknown value");
  }
}

void TakeConversation(const v1::GenerateRequest& in, engine::GenerateRequest* out,
                      FieldViolations* bad) {
  CheckId(in.request_id(), "request_id", kMaxRequestId, true, bad);
  CheckId(in.conversation_id(), "conversation_id", kMaxConversationId, true, bad);
  out->request_id = in.request_id();
  out->conversation_id = in.conversation_id();
  out->create_if_missing = in.create_if_missing();
  if (in.has_base_version()) out->base_version = in.base_version();
  if (in.has_expected_version()) out->expected_version = in.expected_version();
  if (in.conversation_id().empty()) {
    if (in.has_base_version()) bad->Add("base_version", "needs a conversation_id");
    if (in.has_expected_version()) bad->Add("expected_version", "needs a conversation_id");
    if (in.create_if_missing()) bad->Add("create_if_missing", "needs a conversation_id");
    if (in.wait_if_busy()) bad->Add("wait_if_busy", "needs a conversation_id");
    if (in.has_ttl()) bad->Add("ttl", "needs a conversation_id");
  }
  if (in.base_version() < 0) bad->Add("base_version", "is negative");
  if (in.expected_version() < 0) bad->Add("expected_version", "is negative");
  out->wait_if_busy = in.wait_if_busy();
  if (in.has_ttl()) out->ttl = TakeTtl(in.ttl(), "ttl", bad);
  if (in.on_model_mismatch() == v1::ON_MODEL_MISMATCH_REBUILD) {
    out->on_model_mismatch = engine::OnModelMismatch::kRebuild;
  }
  switch (in.commit()) {
    case v1::COMMIT_MODE_KEEP_PARTIAL:
      out->commit = engine::CommitMode::kKeepPartial;
      break;
    case v1::COMMIT_MODE_NEVER:
      out->commit = engine::CommitMode::kNever;
      break;
    default:
      out->commit = engine::CommitMode::kOnSuccess;
      break;
  }
}

}  // namespace

absl::Duration TakeTtl(const google::protobuf::Duration& in, absl::string_view field,
                       FieldViolations* bad) {
  const bool valid = in.seconds() >= 0 && in.seconds() <= 315576000000 && in.nanos() >= 0 &&
                     in.nanos() <= 999999999;
  if (!valid) bad->Add(field, "must be a duration that is not negative");
  if (!valid || (in.seconds() == 0 && in.nanos() == 0)) return absl::InfiniteDuration();
  return absl::Seconds(in.seconds()) + absl::Nanoseconds(in.nanos());
}

void CheckId(absl::string_view id, absl::string_view field, size_t max_bytes, bool allow_empty,
             FieldViolations* violations) {
  if (id.empty() && !allow_empty) violations->Add(field, "is empty");
  if (id.size() > max_bytes) {
    violations->Add(field, absl::StrCat("has ", id.size(), " bytes; at most ", max_bytes));
  }
  for (unsigned char c : id) {
    if (c < 0x20 || c == 0x7F) {
      violations->Add(field, "has a control character");
      return;
    }
  }
}

absl::Status CheckConversationId(absl::string_view id, absl::string_view field, bool allow_empty) {
  FieldViolations bad;
  CheckId(id, field, kMaxConversationId, allow_empty, &bad);
  return bad.ToStatus();
}

absl::Status Check(const v1::AttachRequest& in) {
  if (in.request_id().empty()) return BadField("request_id", "is empty");
  return in.after_token() < 0 ? BadField("after_token", "is negative") : absl::OkStatus();
}

absl::Status Check(const v1::CancelRequest& in) {
  return in.request_id().empty() ? BadField("request_id", "is empty") : absl::OkStatus();
}

absl::StatusOr<GenerateCommand> Converter::ToEngine(const v1::GenerateRequest& in) const {
  if (in.has_constraint()) return NotBuilt("constraint");  // never ignored
  GenerateCommand command;
  engine::GenerateRequest& out = command.request;
  out.sampling = config_.DefaultSampling();
  out.stopping = config_.DefaultStopping();
  FieldViolations bad;
  CheckEnums(in, &bad);
  TakeConversation(in, &out, &bad);
  TakeSampling(in.sampling(), config_.limits, model_.V, &out.sampling, &bad);
  TakeStopping(in.stopping(), config_.limits, model_.V, &out.stopping, &bad);
  TakeOutput(in.output(), config_.limits, &command.output, &bad);
  TakeInt(in.has_num_sequences(), in.num_sequences(), 1, config_.limits.num_sequences,
          "num_sequences", &out.num_sequences, &bad);
  command.output.thinking = TakeThinking(in, &bad);
  if (!bad.empty()) return bad.ToStatus();

  SKEIN_ASSIGN_OR_RETURN(Input input, FromInput(in, command.output.thinking));
  const bool nothing_before = in.conversation_id().empty() && in.prompt_state().empty();
  if (input.tokens.empty() && nothing_before) {
    return BadField("input", "is empty, and there is no conversation to go on with");
  }
  out.input = std::move(input.tokens);
  out.separator = std::move(input.separator);
  if (in.has_messages()) {
    for (const std::string& stop : model_.chat->stops()) out.stopping.stop_strings.push_back(stop);
  }
  out.want_logprobs = command.output.logprobs;
  out.top_logprobs = command.output.top_logprobs;
  out.want_prompt_logprobs = command.output.prompt_logprobs;
  return command;
}

absl::StatusOr<ScoreCommand> Converter::ToEngine(const v1::ScoreRequest& in) const {
  ScoreCommand command;
  command.request_id = in.request_id();
  FieldViolations bad;
  CheckId(in.request_id(), "request_id", kMaxRequestId, true, &bad);
  CheckId(in.conversation_id(), "conversation_id", kMaxConversationId, true, &bad);
  CheckCount(in.continuations_size(), config_.limits.score_continuations, "continuations", &bad);
  if (in.continuations_size() == 0) bad.Add("continuations", "is empty");
  if (in.has_base_version() && in.conversation_id().empty()) {
    bad.Add("base_version", "needs a conversation_id");
  }
  if (in.base_version() < 0) bad.Add("base_version", "is negative");
  const engine::Thinking thinking = TakeThinking(in, &bad);
  if (!bad.empty()) return bad.ToStatus();

  SKEIN_ASSIGN_OR_RETURN(Input prompt, FromInput(in, thinking));
  if (prompt.tokens.empty() && in.conversation_id().empty()) {
    return BadField("prompt",
                    "is empty: there must be a token before the first one that is scored "
                    "(token id 0 starts a document)");
  }
  for (int i = 0; i < in.continuations_size(); ++i) {
    const v1::Continuation& part = in.continuations(i);
    const std::string field = absl::StrCat("continuations[", i, "]");
    std::vector<int32_t> tokens;
    if (part.has_text()) tokens = model_.tokenizer->Encode(part.text().text());
    if (part.has_token_ids()) {
      SKEIN_ASSIGN_OR_RETURN(tokens,
                             FromIds(part.token_ids(), absl::StrCat(field, ".token_ids.ids")));
    }
    if (tokens.empty()) return BadField(field, "is empty");
    SKEIN_RETURN_IF_ERROR(CheckLength(tokens, field));
    command.continuations.push_back(std::move(tokens));
  }
  command.prototype.conversation_id = in.conversation_id();
  if (in.has_base_version()) command.prototype.base_version = in.base_version();
  command.prototype.prompt = std::move(prompt.tokens);
  command.prototype.separator = std::move(prompt.separator);
  return command;
}

}  // namespace skein::server
