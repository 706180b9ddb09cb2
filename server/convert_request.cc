// Requests: proto -> engine, with all validation.

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/convert.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr size_t kMaxRequestId = 128;
constexpr size_t kMaxConversationId = 256;

// Refusals of fields that exist in the API but are not built yet: never ignored.
absl::Status CheckBuilt(const v1::GenerateRequest& in) {
  if (in.has_num_sequences() && in.num_sequences() > 1) return NotBuilt("num_sequences");
  if (in.has_constraint()) return NotBuilt("constraint");
  if (in.has_thinking()) return NotBuilt("thinking");
  if (in.sampling().penalty_scope() == v1::PENALTY_SCOPE_CONVERSATION) {
    return NotBuilt("sampling.penalty_scope");
  }
  if (in.output().prompt_logprobs()) return NotBuilt("output.prompt_logprobs");
  return absl::OkStatus();
}

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

// Takes a float that was set and lies in [lo, hi] (or (lo, hi] when `open`). NaN lies nowhere.
void Take(bool set, float value, float lo, float hi, bool open, absl::string_view field, float* out,
          FieldViolations* bad) {
  if (!set) return;
  if (!(value >= lo && value <= hi) || (open && value == lo)) {
    bad->Add(field,
             absl::StrCat("is ", value, ", must be in ", open ? "(" : "[", lo, ", ", hi, "]"));
    return;
  }
  *out = value;
}

void TakeInt(bool set, int64_t value, int64_t lo, int64_t hi, absl::string_view field, int32_t* out,
             FieldViolations* bad) {
  if (!set) return;
  if (value < lo || value > hi) {
    bad->Add(field, absl::StrCat("is ", value, ", must be in [", lo, ", ", hi, "]"));
    return;
  }
  *out = static_cast<int32_t>(value);
}

void CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids, int32_t V,
                   absl::string_view field, FieldViolations* bad) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= V) {
      bad->Add(absl::StrCat(field, "[", i, "]"),
               absl::StrCat("token id ", ids[i], " is outside of [0, ", V, ")"));
      return;
    }
  }
}

void CheckCount(int64_t n, int64_t limit, absl::string_view field, FieldViolations* bad) {
  if (n > limit) bad->Add(field, absl::StrCat("has ", n, " entries; at most ", limit));
}

void TakeSampling(const v1::Sampling& in, const LimitsConfig& limits, int32_t V,
                  engine::SamplingOptions* out, FieldViolations* bad) {
  Take(in.has_temperature(), in.temperature(), 0, 10, false, "sampling.temperature",
       &out->temperature, bad);
  Take(in.has_top_p(), in.top_p(), 0, 1, true, "sampling.top_p", &out->top_p, bad);
  TakeInt(in.has_top_k(), in.top_k(), 0, INT32_MAX, "sampling.top_k", &out->top_k, bad);
  Take(in.has_min_p(), in.min_p(), 0, 1, false, "sampling.min_p", &out->min_p, bad);
  Take(in.has_presence_penalty(), in.presence_penalty(), -10, 10, false,
       "sampling.presence_penalty", &out->presence_penalty, bad);
  Take(in.has_frequency_penalty(), in.frequency_penalty(), -10, 10, false,
       "sampling.frequency_penalty", &out->frequency_penalty, bad);
  Take(in.has_penalty_decay(), in.penalty_decay(), 0, 1, true, "sampling.penalty_decay",
       &out->penalty_decay, bad);
  Take(in.has_repetition_penalty(), in.repetition_penalty(), 0, 10, true,
       "sampling.repetition_penalty", &out->repetition_penalty, bad);
  if (in.has_seed()) out->seed = in.seed();
  if (in.has_top_p_before_temperature()) {
    out->top_p_before_temperature = in.top_p_before_temperature();
  }
  CheckCount(in.logit_bias_size(), limits.logit_bias, "sampling.logit_bias", bad);
  for (const auto& [token, value] : in.logit_bias()) {
    const std::string field = absl::StrCat("sampling.logit_bias[", token, "]");
    if (token < 0 || token >= V)
      bad->Add(field, absl::StrCat("token id is outside of [0, ", V, ")"));
    if (!std::isfinite(value)) bad->Add(field, "must be finite; use banned_token_ids to ban");
    out->logit_bias.push_back({token, value});
  }
  CheckCount(in.banned_token_ids_size(), limits.logit_bias, "sampling.banned_token_ids", bad);
  CheckTokenIds(in.banned_token_ids(), V, "sampling.banned_token_ids", bad);
  out->banned_tokens.assign(in.banned_token_ids().begin(), in.banned_token_ids().end());
}

void TakeMaxTime(const v1::Stopping& in, engine::StoppingOptions* out, FieldViolations* bad) {
  if (!in.has_max_time()) return;
  const auto& d = in.max_time();
  if (d.seconds() < 0 || d.nanos() < 0 || d.nanos() > 999999999 || d.seconds() > 315576000000 ||
      (d.seconds() == 0 && d.nanos() == 0)) {
    bad->Add("stopping.max_time", "must be a positive duration");
    return;
  }
  out->max_time = absl::Seconds(d.seconds()) + absl::Nanoseconds(d.nanos());
}

void TakeStopping(const v1::Stopping& in, const LimitsConfig& limits, int32_t V,
                  engine::StoppingOptions* out, FieldViolations* bad) {
  TakeInt(in.has_max_tokens(), in.max_tokens(), 0, limits.max_tokens, "stopping.max_tokens",
          &out->max_tokens, bad);
  TakeInt(in.has_min_tokens(), in.min_tokens(), 0, out->max_tokens, "stopping.min_tokens",
          &out->min_tokens, bad);
  TakeMaxTime(in, out, bad);
  CheckCount(in.stop_strings_size(), limits.stop_strings, "stopping.stop_strings", bad);
  for (int i = 0; i < in.stop_strings_size(); ++i) {
    const std::string& text = in.stop_strings(i);
    const std::string field = absl::StrCat("stopping.stop_strings[", i, "]");
    if (text.empty()) bad->Add(field, "is empty");
    if (text.size() > limits.stop_string_bytes) {
      bad->Add(field,
               absl::StrCat("has ", text.size(), " bytes; at most ", limits.stop_string_bytes));
    }
    out->stop_strings.push_back(text);
  }
  CheckCount(in.stop_token_ids_size(), limits.stop_token_ids, "stopping.stop_token_ids", bad);
  CheckTokenIds(in.stop_token_ids(), V, "stopping.stop_token_ids", bad);
  out->stop_tokens.assign(in.stop_token_ids().begin(), in.stop_token_ids().end());
  if (in.has_ignore_eos()) out->ignore_eos = in.ignore_eos();
}

void TakeOutput(const v1::Output& in, const LimitsConfig& limits, OutputChoice* out,
                FieldViolations* bad) {
  if (in.has_text()) out->text = in.text();
  TakeInt(in.has_top_logprobs(), in.top_logprobs(), 0, limits.top_logprobs, "output.top_logprobs",
          &out->top_logprobs, bad);
  out->logprobs = in.logprobs() || out->top_logprobs > 0;
  out->tokens = in.token_ids() || out->logprobs;
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

absl::Status Converter::CheckLength(const std::vector<int32_t>& tokens,
                                    absl::string_view field) const {
  if (static_cast<int64_t>(tokens.size()) <= config_.limits.prompt_tokens) return absl::OkStatus();
  return base::WithReason(
      BadField(field, absl::StrCat("has ", tokens.size(), " tokens; at most ",
                                   config_.limits.prompt_tokens, " (limits.prompt_tokens)")),
      "PROMPT_TOO_LONG");
}

absl::StatusOr<std::vector<int32_t>> Converter::FromIds(const v1::TokenIds& in,
                                                        absl::string_view field) const {
  FieldViolations bad;
  CheckTokenIds(in.ids(), model_.V, field, &bad);
  if (!bad.empty()) return bad.ToStatus();
  return std::vector<int32_t>(in.ids().begin(), in.ids().end());
}

absl::StatusOr<Converter::Input> Converter::FromMessages(const v1::Messages& in,
                                                         absl::string_view field) const {
  std::vector<engine::Message> messages;
  FieldViolations bad;
  for (int i = 0; i < in.messages_size(); ++i) {
    const v1::Message& message = in.messages(i);
    const std::string path = absl::StrCat(field, ".messages[", i, "]");
    if (message.content().empty()) bad.Add(absl::StrCat(path, ".content"), "is empty");
    engine::Role role = engine::Role::kUser;
    switch (message.role()) {
      case v1::ROLE_SYSTEM:
        role = engine::Role::kSystem;
        break;
      case v1::ROLE_USER:
        break;
      case v1::ROLE_ASSISTANT:
        role = engine::Role::kAssistant;
        break;
      case v1::ROLE_TOOL:
        return NotBuilt(absl::StrCat(path, ".role"));
      default:
        bad.Add(absl::StrCat(path, ".role"), "must be system, user or assistant");
    }
    messages.push_back({role, message.content()});
  }
  if (messages.empty()) bad.Add(absl::StrCat(field, ".messages"), "is empty");
  if (!bad.empty()) return bad.ToStatus();
  if (!model_.chat->available()) {
    return Precondition("NO_CHAT_TEMPLATE", model_.name,
                        "this model has no chat template: send `text` instead of `messages`");
  }
  absl::StatusOr<std::string> text = model_.chat->Render(messages);
  if (!text.ok()) return BadField(field, text.status().message());
  return Input{model_.tokenizer->Encode(*text), model_.tokenizer->Encode(model_.chat->separator())};
}

// `in` has the oneof text | token_ids | messages; all may be unset.
template <typename Proto>
absl::StatusOr<Converter::Input> Converter::FromInput(const Proto& in) const {
  Input input;
  absl::string_view field = "messages";
  if (in.has_text()) {
    field = "text.text";
    input.tokens = model_.tokenizer->Encode(in.text().text());
  } else if (in.has_token_ids()) {
    field = "token_ids.ids";
    SKEIN_ASSIGN_OR_RETURN(input.tokens, FromIds(in.token_ids(), field));
  } else if (in.has_messages()) {
    SKEIN_ASSIGN_OR_RETURN(input, FromMessages(in.messages(), field));
  }
  SKEIN_RETURN_IF_ERROR(CheckLength(input.tokens, field));
  return input;
}

absl::StatusOr<GenerateCommand> Converter::ToEngine(const v1::GenerateRequest& in) const {
  SKEIN_RETURN_IF_ERROR(CheckBuilt(in));
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
  if (in.has_num_sequences() && in.num_sequences() < 1) bad.Add("num_sequences", "must be 1");
  if (!bad.empty()) return bad.ToStatus();

  SKEIN_ASSIGN_OR_RETURN(Input input, FromInput(in));
  if (input.tokens.empty() && in.conversation_id().empty()) {
    return BadField("input", "is empty, and there is no conversation to go on with");
  }
  out.input = std::move(input.tokens);
  out.separator = std::move(input.separator);
  if (in.has_messages()) {
    for (const std::string& stop : model_.chat->stops()) out.stopping.stop_strings.push_back(stop);
  }
  out.want_logprobs = command.output.logprobs;
  out.top_logprobs = command.output.top_logprobs;
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
  if (!bad.empty()) return bad.ToStatus();

  SKEIN_ASSIGN_OR_RETURN(Input prompt, FromInput(in));
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

absl::StatusOr<std::vector<int32_t>> Converter::Tokenize(const v1::TokenizeRequest& in) const {
  switch (in.input_case()) {
    case v1::TokenizeRequest::kText:
      return model_.tokenizer->Encode(in.text());
    case v1::TokenizeRequest::kBytes:
      return model_.tokenizer->Encode(in.bytes());
    case v1::TokenizeRequest::kMessages: {
      SKEIN_ASSIGN_OR_RETURN(Input input, FromMessages(in.messages(), "messages"));
      return std::move(input.tokens);
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return BadField("input", "set one of text, bytes, messages");
}

absl::StatusOr<std::string> Converter::Detokenize(const v1::DetokenizeRequest& in) const {
  FieldViolations bad;
  CheckTokenIds(in.ids(), model_.V, "ids", &bad);
  if (!bad.empty()) return bad.ToStatus();
  std::string bytes;
  for (int32_t id : in.ids()) {
    const absl::string_view piece = model_.tokenizer->Bytes(id);
    bytes.append(piece.data(), piece.size());
  }
  return bytes;
}

}  // namespace skein::server
