#pragma once
// proto <-> engine, and all validation of requests. Pure and thread-safe: everything here is const.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/chat_template.h"
#include "engine/request.h"
#include "engine/store/conversation_store.h"
#include "engine/tokenizer.h"
#include "server/config.h"
#include "server/status.h"
#include "skein/v1/conversations.pb.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

namespace v1 = ::skein::v1;

// What is served, as far as requests are concerned. Constant after start.
struct ServedModel {
  std::string name;
  const engine::Tokenizer* tokenizer = nullptr;
  const engine::ChatTemplate* chat = nullptr;
  int32_t V = 0;  // rows of the embedding: ids are in [0, V)
};

// How a Generate's events are shown.
struct OutputChoice {
  bool text = true;
  bool tokens = false;
  bool logprobs = false;
  int32_t top_logprobs = 0;
  bool prompt_logprobs = false;
  engine::Thinking thinking = engine::Thinking::kOff;  // which the input was rendered with
};

struct GenerateCommand {
  engine::GenerateRequest request;
  OutputChoice output;
};

// One engine request a continuation; they share everything else. request_id and deadline are left
// to the caller.
struct ScoreCommand {
  std::string request_id;
  engine::ScoreRequest prototype;
  std::vector<std::vector<int32_t>> continuations;
};

class Converter {
 public:
  // Both outlive the converter.
  Converter(const ServerConfig& config, const ServedModel& model)
      : config_(config), model_(model) {}

  // INVALID_ARGUMENT with all bad fields, UNIMPLEMENTED, FAILED_PRECONDITION (no template). The
  // request's `model` has been resolved to this one.
  absl::StatusOr<GenerateCommand> ToEngine(const v1::GenerateRequest& in) const;
  absl::StatusOr<ScoreCommand> ToEngine(const v1::ScoreRequest& in) const;
  // INVALID_ARGUMENT also of what would make a larger answer than kMaxAnswerBytes.
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& in) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& in) const;

 private:
  struct Input {
    std::vector<int32_t> tokens;
    std::vector<int32_t> separator;
  };
  absl::StatusOr<Input> FromMessages(const v1::Messages& in, engine::Thinking thinking,
                                     absl::string_view field) const;
  absl::StatusOr<std::vector<int32_t>> FromIds(const v1::TokenIds& in,
                                               absl::string_view field) const;
  absl::Status CheckLength(const std::vector<int32_t>& tokens, absl::string_view field) const;
  absl::StatusOr<std::vector<int32_t>> ToTokens(const v1::TokenizeRequest& in) const;
  template <typename Proto>
  absl::StatusOr<Input> FromInput(const Proto& in, engine::Thinking thinking) const;

  const ServerConfig& config_;
  const ServedModel& model_;
};

// What clients receive by default: no answer, and no message of a stream, is larger.
inline constexpr size_t kMaxAnswerBytes = size_t{4} << 20;

inline constexpr size_t kMaxRequestId = 128;
inline constexpr size_t kMaxConversationId = 256;

// At most `max_bytes`, no control characters; `allow_empty` where the server may choose.
void CheckId(absl::string_view id, absl::string_view field, size_t max_bytes, bool allow_empty,
             FieldViolations* violations);
absl::Status CheckConversationId(absl::string_view id, absl::string_view field, bool allow_empty);
// 0: infinite, as the engine has it.
absl::Duration TakeTtl(const google::protobuf::Duration& in, absl::string_view field,
                       FieldViolations* bad);

absl::Status Check(const v1::AttachRequest& in);
absl::Status Check(const v1::CancelRequest& in);

// Request ids are a tenant's own; the engine knows them under a name that no other tenant's has.
std::string EngineRequestId(absl::string_view tenant, absl::string_view request_id);
std::string ShownRequestId(absl::string_view engine_id);

v1::Token ToProto(const engine::TokenEvent& event, const engine::Tokenizer& tokenizer,
                  const OutputChoice& choice);
v1::Conversation ToProto(const engine::ConversationInfo& info);
// `tokenizer`: of its token ids; null: their text is left out.
v1::Version ToProto(const engine::VersionInfo& version, const engine::Tokenizer* tokenizer);
v1::Started ToProto(const engine::StartedEvent& event, absl::string_view request_id);
v1::Finished ToProto(const engine::FinishedEvent& event);
v1::Finished ToFailed(const absl::Status& error);  // of one sequence among several
v1::FinishReason ToProto(engine::FinishReason reason);
void ToProto(absl::Duration duration, google::protobuf::Duration* out);
v1::Sampling ToProto(const engine::SamplingOptions& sampling);
v1::Stopping ToProto(const engine::StoppingOptions& stopping);

// As Info.ListModels shows it.
std::string FingerprintText(uint64_t fingerprint);

// Bytes as UTF-8; what is not becomes U+FFFD.
std::string ToUtf8(absl::string_view bytes);

}  // namespace skein::server
