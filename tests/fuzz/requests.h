#pragma once
// What the server makes of the bytes of a request before it acts on them, one row an RPC. For any
// bytes: an error that can be sent, or a command within the limits. convert_fuzz.cc makes up the
// bytes; tests/server/requests_test.cc holds the rows against the table of all RPCs.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "engine/base/check.h"
#include "google/protobuf/descriptor.h"
#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "grpc/reflection/v1/reflection.pb.h"
#include "grpc/reflection/v1alpha/reflection.pb.h"
#include "server/convert.h"
#include "server/convert_control.h"
#include "server/convert_conversations.h"
#include "server/grpc_status.h"
#include "server/model_files.h"
#include "server/reflection.h"
#include "server/wire.h"
#include "skein/v1/control.pb.h"
#include "skein/v1/info.pb.h"

namespace skein::server::fuzz {

// Small limits, so that they are met.
struct Server {
  Server() {
    config.limits.prompt_tokens = 64;
    config.limits.max_tokens = 32;
    config.limits.stop_strings = 3;
    config.limits.stop_string_bytes = 8;
    config.limits.stop_token_ids = 3;
    config.limits.logit_bias = 4;
    config.limits.score_continuations = 4;
    config.limits.forks = 3;
    config.limits.detokenize_ids = 16;
    config.limits.tokenize_bytes = 64;
    config.defaults.max_tokens = 16;
  }
  ServerConfig config;
  const std::unique_ptr<engine::Tokenizer> tokenizer = engine::NewByteTokenizer();
  const engine::ChatTemplate chat = *engine::ChatTemplate::Create("rwkv", {});
  const ServedModel model{"tiny", tokenizer.get(), &chat, 257};
  const Converter converter{config, model};
};

inline const Server& TheServer() {
  static const auto& server = *new Server();
  return server;
}

inline void CheckIds(const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) SKEIN_CHECK(id >= 0 && id < TheServer().model.V);
}

inline void CheckLimits(const GenerateCommand& command) {
  const engine::GenerateRequest& r = command.request;
  const LimitsConfig& limits = TheServer().config.limits;
  SKEIN_CHECK(static_cast<int64_t>(r.input.size()) <= limits.prompt_tokens);
  CheckIds(r.input);
  SKEIN_CHECK(r.request_id.size() <= kMaxRequestId);
  SKEIN_CHECK(r.conversation_id.size() <= kMaxConversationId);
  SKEIN_CHECK(r.stopping.max_tokens >= 0 && r.stopping.max_tokens <= limits.max_tokens);
  SKEIN_CHECK(r.stopping.max_time >= absl::ZeroDuration());
  SKEIN_CHECK(r.sampling.temperature >= 0 && r.sampling.top_p > 0 && r.sampling.top_p <= 1);
  SKEIN_CHECK(command.output.top_logprobs >= 0 &&
              command.output.top_logprobs <= limits.top_logprobs);
}

inline void CheckLimits(const ScoreCommand& command) {
  SKEIN_CHECK(static_cast<int64_t>(command.continuations.size()) <=
              TheServer().config.limits.score_continuations);
  for (const auto& continuation : command.continuations) CheckIds(continuation);
}

inline void CheckLimits(const v1::TokenizeResponse& answer) {
  CheckIds({answer.ids().begin(), answer.ids().end()});
  SKEIN_CHECK(answer.pieces_size() == answer.ids_size());
  SKEIN_CHECK(answer.ByteSizeLong() <= kMaxAnswerBytes);
}

inline void CheckLimits(const v1::DetokenizeResponse& answer) {
  SKEIN_CHECK(answer.ByteSizeLong() <= kMaxAnswerBytes);
}

inline void CheckLimits(const std::string&) {}

inline void CheckLimits(const engine::NewConversation& made) {
  SKEIN_CHECK(!made.ttl.has_value() || *made.ttl > absl::ZeroDuration());
}

inline void CheckLimits(const CreateCommand& command) {
  SKEIN_CHECK(command.id.size() <= kMaxConversationId);
  SKEIN_CHECK(command.source.size() <= kMaxConversationId);
  SKEIN_CHECK(command.model.empty() || !command.prompt_state.empty());
  CheckLimits(command.made);
}

inline void CheckLimits(const GetCommand& command) {
  SKEIN_CHECK(!command.id.empty() && command.id.size() <= kMaxConversationId);
  SKEIN_CHECK(command.after >= 0 && command.size > 0 && command.size <= kMaxConversationsPage);
}

inline void CheckLimits(const engine::ListQuery& query) {
  SKEIN_CHECK(query.limit > 0 && query.limit <= kMaxConversationsPage);
  SKEIN_CHECK(query.prefix.size() <= kMaxConversationId &&
              query.after.size() <= kMaxConversationId);
}

inline void CheckLimits(const ForkCommand& command) {
  SKEIN_CHECK(!command.id.empty() && command.id.size() <= kMaxConversationId);
  SKEIN_CHECK(command.count > 0 && command.count <= TheServer().config.limits.forks);
  SKEIN_CHECK(command.new_ids.empty() ||
              static_cast<int32_t>(command.new_ids.size()) == command.count);
  CheckLimits(command.made);
}

inline void CheckLimits(absl::Duration drain) { SKEIN_CHECK(drain >= absl::ZeroDuration()); }

inline void CheckLimits(const grpc::reflection::v1::ServerReflectionResponse& response) {
  SKEIN_CHECK(response.message_response_case() != response.MESSAGE_RESPONSE_NOT_SET);
  grpc::ByteBuffer bytes;
  Serialize(response, &bytes);
}

// What leaves must be a message that every client can read, and fit into the trailers that one
// takes: 8 KiB, as text where it is text (three bytes for one that is not ASCII) and else in
// base64.
inline void CheckError(const absl::Status& status) {
  const grpc::Status out = ToGrpc(status, absl::Seconds(1));
  google::rpc::Status details;
  SKEIN_CHECK(details.ParseFromString(out.error_details()));
  SKEIN_CHECK(details.message() == out.error_message());
  SKEIN_CHECK(engine::IsValidUtf8(out.error_message()));
  SKEIN_CHECK(details.details_size() > 0);
  SKEIN_CHECK(out.error_message().size() * 3 + out.error_details().size() * 4 / 3 < 8000);
}

struct Row {
  const char* service;
  const char* method;
  const google::protobuf::Descriptor* request;
  std::function<void(absl::string_view bytes)> try_bytes;
};

// `convert(request)`: a command or an error; an error or OK; or nothing where any message will do.
template <typename Request, typename Convert>
Row RowOf(const char* service, const char* method, Convert convert) {
  const auto try_bytes = [convert](absl::string_view bytes) {
    Request request;
    grpc::Slice slice(bytes.data(), bytes.size());
    const absl::Status parsed = Parse(grpc::ByteBuffer(&slice, 1), &request);
    if (!parsed.ok()) return CheckError(parsed);
    const auto command = convert(request);
    if constexpr (std::is_same_v<decltype(command), const absl::Status>) {
      if (!command.ok()) CheckError(command);
    } else if (command.ok()) {
      CheckLimits(*command);
    } else {
      CheckError(command.status());
    }
  };
  return {service, method, Request::descriptor(), try_bytes};
}

// The first byte of an input is a row's index: new rows go to the end.
inline const std::vector<Row>& Rows() {
  static constexpr char kGeneration[] = "skein.v1.Generation";
  static constexpr char kConversations[] = "skein.v1.Conversations";
  static constexpr char kInfo[] = "skein.v1.Info";
  static constexpr char kControl[] = "skein.v1.Control";
  static constexpr char kHealth[] = "grpc.health.v1.Health";
  const auto any = [](const auto&) { return absl::OkStatus(); };
  const auto check = [](const auto& r) { return Check(r); };
  const auto to_engine = [](const auto& r) { return TheServer().converter.ToEngine(r); };
  const auto to_command = [](const auto& r) { return ToCommand(r); };
  const auto reflect = [](const auto& r) {
    // The two versions differ in their names only, as the server takes them.
    grpc::reflection::v1::ServerReflectionRequest request;
    SKEIN_CHECK(request.ParseFromString(r.SerializeAsString()));
    return absl::StatusOr<grpc::reflection::v1::ServerReflectionResponse>(
        Reflect(request, {"skein.v1.Info"}));
  };
  static const auto& rows = *new std::vector<Row>{
      RowOf<v1::GenerateRequest>(kGeneration, "Generate", to_engine),
      RowOf<v1::ScoreRequest>(kGeneration, "Score", to_engine),
      RowOf<v1::TokenizeRequest>(kGeneration, "Tokenize",
                                 [](const auto& r) { return TheServer().converter.Tokenize(r); }),
      RowOf<v1::DetokenizeRequest>(
          kGeneration, "Detokenize",
          [](const auto& r) { return TheServer().converter.Detokenize(r); }),
      RowOf<v1::CancelRequest>(kGeneration, "Cancel", check),
      RowOf<v1::AttachRequest>(kGeneration, "Attach", check),
      RowOf<v1::CreateConversationRequest>(kConversations, "Create", to_command),
      RowOf<v1::GetConversationRequest>(kConversations, "Get", to_command),
      RowOf<v1::ListConversationsRequest>(kConversations, "List", to_command),
      RowOf<v1::DeleteConversationRequest>(kConversations, "Delete", check),
      RowOf<v1::ForkConversationRequest>(
          kConversations, "Fork",
          [](const auto& r) { return ToCommand(r, TheServer().config.limits); }),
      RowOf<v1::RewindConversationRequest>(kConversations, "Rewind", check),
      RowOf<v1::GetServerInfoRequest>(kInfo, "GetServerInfo", any),
      RowOf<v1::ListModelsRequest>(kInfo, "ListModels", any),
      RowOf<v1::LoadModelRequest>(kControl, "LoadModel",
                                  [](const auto& r) -> absl::StatusOr<std::string> {
                                    SKEIN_ASSIGN_OR_RETURN(const ModelSource source,
                                                           ToModelSource(r));
                                    return FindModelFile(source.path, {"."});
                                  }),
      RowOf<v1::UnloadModelRequest>(kControl, "UnloadModel", check),
      RowOf<v1::GetLoadRequest>(kControl, "GetLoad", any),
      RowOf<v1::DrainRequest>(kControl, "Drain", [](const auto& r) { return ToTimeout(r); }),
      RowOf<v1::UndrainRequest>(kControl, "Undrain", any),
      RowOf<v1::ReloadConfigRequest>(kControl, "ReloadConfig", any),
      RowOf<grpc::health::v1::HealthCheckRequest>(kHealth, "Check", any),
      RowOf<grpc::health::v1::HealthCheckRequest>(kHealth, "Watch", any),
      RowOf<grpc::reflection::v1::ServerReflectionRequest>("grpc.reflection.v1.ServerReflection",
                                                           "ServerReflectionInfo", reflect),
      RowOf<grpc::reflection::v1alpha::ServerReflectionRequest>(
          "grpc.reflection.v1alpha.ServerReflection", "ServerReflectionInfo", reflect),
  };
  return rows;
}

// An input of the fuzzer: the first byte chooses the row, the rest is the message's wire form.
inline void TryInput(absl::string_view input) {
  if (input.empty()) return;
  const std::vector<Row>& rows = Rows();
  rows[static_cast<uint8_t>(input[0]) % rows.size()].try_bytes(input.substr(1));
}

}  // namespace skein::server::fuzz
