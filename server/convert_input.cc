// Text, token ids and messages -> tokens, and back.

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/convert_fields.h"
#include "server/status.h"

namespace skein::server {
namespace {

absl::StatusOr<std::vector<engine::Message>> ToMessages(const v1::Messages& in,
                                                        absl::string_view field) {
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
        role = engine::Role::kTool;
        break;
      default:
        bad.Add(absl::StrCat(path, ".role"), "must be system, user, assistant or tool");
    }
    messages.push_back({role, message.content()});
  }
  if (messages.empty()) bad.Add(absl::StrCat(field, ".messages"), "is empty");
  if (!bad.empty()) return bad.ToStatus();
  return messages;
}

const char* FieldOf(const v1::TokenizeRequest& in) {
  return in.has_text() ? "text" : in.has_bytes() ? "bytes" : "messages";
}

void CheckBytes(const v1::TokenizeRequest& in, int64_t limit, FieldViolations* bad) {
  size_t bytes = in.has_text() ? in.text().size() : in.has_bytes() ? in.bytes().size() : 0;
  for (const v1::Message& message : in.messages().messages()) bytes += message.content().size();
  if (bytes <= static_cast<size_t>(limit)) return;
  bad->Add(FieldOf(in),
           absl::StrCat("has ", bytes, " bytes; at most ", limit, " (limits.tokenize_bytes)"));
}

// `bytes` of an answer, or of a part of it, to what `field` asks for.
absl::Status CheckAnswer(size_t bytes, absl::string_view field) {
  if (bytes <= kMaxAnswerBytes) return absl::OkStatus();
  return BadField(field, absl::StrCat("makes an answer of more than ", kMaxAnswerBytes,
                                      " bytes, which is what clients receive; send it in pieces"));
}

}  // namespace

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
                                                         engine::Thinking thinking,
                                                         absl::string_view field) const {
  SKEIN_ASSIGN_OR_RETURN(const std::vector<engine::Message> messages, ToMessages(in, field));
  if (!model_.chat->available()) {
    return Precondition("NO_CHAT_TEMPLATE", model_.name,
                        "this model has no chat template: send `text` instead of `messages`");
  }
  absl::StatusOr<std::string> text = model_.chat->Render(messages, thinking);
  if (!text.ok()) return BadField(field, text.status().message());
  return Input{model_.tokenizer->Encode(*text), model_.tokenizer->Encode(model_.chat->separator())};
}

// `in` has the oneof text | token_ids | messages; all may be unset.
template <typename Proto>
absl::StatusOr<Converter::Input> Converter::FromInput(const Proto& in,
                                                      engine::Thinking thinking) const {
  Input input;
  absl::string_view field = "messages";
  if (in.has_text()) {
    field = "text.text";
    input.tokens = model_.tokenizer->Encode(in.text().text());
  } else if (in.has_token_ids()) {
    field = "token_ids.ids";
    SKEIN_ASSIGN_OR_RETURN(input.tokens, FromIds(in.token_ids(), field));
  } else if (in.has_messages()) {
    SKEIN_ASSIGN_OR_RETURN(input, FromMessages(in.messages(), thinking, field));
  }
  SKEIN_RETURN_IF_ERROR(CheckLength(input.tokens, field));
  return input;
}

template absl::StatusOr<Converter::Input> Converter::FromInput(const v1::GenerateRequest&,
                                                               engine::Thinking) const;
template absl::StatusOr<Converter::Input> Converter::FromInput(const v1::ScoreRequest&,
                                                               engine::Thinking) const;

absl::StatusOr<std::vector<int32_t>> Converter::ToTokens(const v1::TokenizeRequest& in) const {
  FieldViolations bad;
  CheckBytes(in, config_.limits.tokenize_bytes, &bad);
  const engine::Thinking thinking = TakeThinking(in, &bad);
  if (!bad.empty()) return bad.ToStatus();
  switch (in.input_case()) {
    case v1::TokenizeRequest::kText:
      return model_.tokenizer->Encode(in.text());
    case v1::TokenizeRequest::kBytes:
      return model_.tokenizer->Encode(in.bytes());
    case v1::TokenizeRequest::kMessages: {
      SKEIN_ASSIGN_OR_RETURN(Input input, FromMessages(in.messages(), thinking, "messages"));
      return std::move(input.tokens);
    }
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  return BadField("input", "set one of text, bytes, messages");
}

absl::StatusOr<v1::TokenizeResponse> Converter::Tokenize(const v1::TokenizeRequest& in) const {
  SKEIN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ToTokens(in));
  v1::TokenizeResponse out;
  out.mutable_ids()->Add(ids.begin(), ids.end());
  for (const int32_t id : ids) {
    const absl::string_view piece = model_.tokenizer->Bytes(id);
    out.add_pieces(piece.data(), piece.size());
  }
  SKEIN_RETURN_IF_ERROR(CheckAnswer(out.ByteSizeLong(), FieldOf(in)));
  return out;
}

absl::StatusOr<v1::DetokenizeResponse> Converter::Detokenize(
    const v1::DetokenizeRequest& in) const {
  FieldViolations bad;
  CheckCount(in.ids_size(), config_.limits.detokenize_ids, "ids", &bad);
  CheckTokenIds(in.ids(), model_.V, "ids", &bad);
  if (!bad.empty()) return bad.ToStatus();
  v1::DetokenizeResponse out;
  for (const int32_t id : in.ids()) {
    const absl::string_view piece = model_.tokenizer->Bytes(id);
    out.mutable_bytes()->append(piece.data(), piece.size());
    // At once: a few bytes of an id may stand for hundreds.
    SKEIN_RETURN_IF_ERROR(CheckAnswer(out.bytes().size(), "ids"));
  }
  out.set_text(ToUtf8(out.bytes()));
  SKEIN_RETURN_IF_ERROR(CheckAnswer(out.ByteSizeLong(), "ids"));
  return out;
}

}  // namespace skein::server
