#include "server/generation_service.h"

#include <memory>
#include <utility>

#include "engine/base/check.h"
#include "server/generate_call.h"
#include "server/score_call.h"
#include "server/status.h"

namespace skein::server {
namespace {

using Reactor = grpc::ServerWriteReactor<grpc::ByteBuffer>;

Reactor* Refuse(Call call, const absl::Status& status, const std::string& request_id) {
  LogLine line(Call::LevelOf(status), "request");
  line.With("id", request_id);
  call.Log(line, status);
  return new RefusedStream(call.End(status, /*refused=*/true));
}

}  // namespace

Reactor* GenerationService::Generate(Context* context, const Bytes* in) {
  Call call(services_, {kName, "Generate"}, context);
  v1::GenerateRequest proto;
  if (absl::Status s = Parse(*in, &proto); !s.ok()) return Refuse(std::move(call), s, "");
  absl::StatusOr<GenerateCommand> command = services_.converter->ToEngine(proto);
  if (!command.ok()) return Refuse(std::move(call), command.status(), proto.request_id());

  engine::GenerateRequest& request = command->request;
  if (request.request_id.empty()) request.request_id = NewRequestId();
  request.deadline = call.deadline();
  const std::string request_id = request.request_id;
  auto stream = std::make_shared<GenerateCall>(call, request_id, command->output);
  stream->Hold();
  if (absl::Status s = services_.engine->Submit(std::move(request), stream); !s.ok()) {
    stream->Release();
    return Refuse(std::move(call), s, request_id);
  }
  return stream.get();
}

Reactor* GenerationService::Score(Context* context, const Bytes* in) {
  Call call(services_, {kName, "Score"}, context);
  v1::ScoreRequest proto;
  if (absl::Status s = Parse(*in, &proto); !s.ok()) return Refuse(std::move(call), s, "");
  absl::StatusOr<ScoreCommand> command = services_.converter->ToEngine(proto);
  if (!command.ok()) return Refuse(std::move(call), command.status(), proto.request_id());

  auto stream = std::make_shared<ScoreCall>(call, *std::move(command));
  stream->Hold();
  if (absl::Status s = stream->Start(); !s.ok()) {
    stream->Release();
    return Refuse(std::move(call), s, proto.request_id());
  }
  return stream.get();
}

Reactor* GenerationService::Attach(Context* context, const Bytes*) {
  return Refuse(Call(services_, {kName, "Attach"}, context), NotBuilt("skein.v1.Generation.Attach"),
                "");
}

grpc::ServerUnaryReactor* GenerationService::Cancel(Context* context, const Bytes* in, Bytes* out) {
  return Unary<v1::CancelRequest, v1::CancelResponse>(
      services_, {kName, "Cancel"}, context, in, out,
      [this](const v1::CancelRequest& request, v1::CancelResponse* response) -> absl::Status {
        if (request.request_id().empty()) return BadField("request_id", "is empty");
        response->set_cancelled(services_.engine->Cancel(request.request_id(), /*by_client=*/true));
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(Context* context, const Bytes* in,
                                                      Bytes* out) {
  return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(
      services_, {kName, "Tokenize"}, context, in, out,
      [this](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                               services_.converter->Tokenize(request));
        for (int32_t id : ids) {
          const absl::string_view piece = services_.model->tokenizer->Bytes(id);
          response->add_ids(id);
          response->add_pieces(piece.data(), piece.size());
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(Context* context, const Bytes* in,
                                                        Bytes* out) {
  return Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      services_, {kName, "Detokenize"}, context, in, out,
      [this](const v1::DetokenizeRequest& request,
             v1::DetokenizeResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const std::string bytes, services_.converter->Detokenize(request));
        response->set_bytes(bytes);
        response->set_text(ToUtf8(bytes));
        return absl::OkStatus();
      });
}

}  // namespace skein::server
