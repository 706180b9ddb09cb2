#include "server/generation_service.h"

#include <memory>
#include <utility>

#include "engine/base/check.h"
#include "server/generate_call.h"
#include "server/request_fingerprint.h"
#include "server/score_call.h"
#include "server/status.h"
#include "server/wire.h"

namespace skein::server {
namespace {

void Refuse(Call& call, const absl::Status& status, const std::string& request_id) {
  LogRefused(call, status, request_id);
  server::Refuse(call, status);
}

// An overloaded server spends nothing on a request that it cannot take; who may not ask at all is
// told that instead.
absl::Status CheckRoom(Call* call) {
  if (!call->access().ok()) return absl::OkStatus();
  absl::Status status = call->services().models->CheckRoom();
  // Counted as the default model's, whose queue says when to come back.
  if (!status.ok()) call->Use("").status().IgnoreError();
  return status;
}

// A retry of a request that runs, or whose result is kept, needs no room. Told by the first bytes.
bool IsKnown(const Call& call, const grpc::ByteBuffer& in) {
  const std::string id =
      LeadingString(in, v1::GenerateRequest::kRequestIdFieldNumber, kMaxRequestId);
  return !id.empty() && call.services().requests->Find(call.principal().tenant, id).ok();
}

}  // namespace

void GenerationService::Generate(Call call, const Bytes& in) {
  if (absl::Status s = CheckRoom(&call); !s.ok() && !IsKnown(call, in)) {
    return Refuse(call, s, "");
  }
  v1::GenerateRequest proto;
  if (absl::Status s = call.Parse(in, &proto); !s.ok()) return Refuse(call, s, "");
  const absl::StatusOr<ModelUse> model = call.Use(proto.model());
  if (!model.ok()) return Refuse(call, model.status(), proto.request_id());
  absl::StatusOr<GenerateCommand> command = model->converter().ToEngine(proto);
  if (!command.ok()) return Refuse(call, command.status(), proto.request_id());

  if (!proto.prompt_state().empty()) {
    auto prompt = model->instance().prompts.Find(proto.prompt_state(), model->instance().name());
    if (!prompt.ok()) return Refuse(call, prompt.status(), proto.request_id());
    command->request.prompt = *std::move(prompt);
  }

  RequestSpec spec;
  spec.tenant = call.principal().tenant;
  spec.request_id = proto.request_id().empty() ? NewRequestId() : proto.request_id();
  spec.fingerprint = FingerprintOf(proto);
  spec.model = model->instance().name();
  spec.conversation_id = proto.conversation_id();
  spec.output = command->output;
  spec.limits = model->config().ToRecordLimits();
  spec.sequences = command->request.num_sequences;
  spec.finish = proto.on_disconnect() == v1::ON_DISCONNECT_FINISH;
  spec.tokenizer = model->instance().tokenizer;
  const std::string request_id = spec.request_id;
  auto stream = std::make_shared<GenerateCall>(call, request_id);
  stream->Hold();
  absl::Status status = stream->Generate({*model, std::move(spec), std::move(command->request)});
  if (!status.ok()) {
    stream->Release();
    return Refuse(call, status, request_id);
  }
  stream->OnReady();
}

void GenerationService::Score(Call call, const Bytes& in) {
  if (absl::Status s = CheckRoom(&call); !s.ok()) return Refuse(call, s, "");
  v1::ScoreRequest proto;
  if (absl::Status s = call.Parse(in, &proto); !s.ok()) return Refuse(call, s, "");
  const absl::StatusOr<ModelUse> model = call.Use(proto.model());
  if (!model.ok()) return Refuse(call, model.status(), proto.request_id());
  absl::StatusOr<ScoreCommand> command = model->converter().ToEngine(proto);
  if (!command.ok()) return Refuse(call, command.status(), proto.request_id());

  auto stream = std::make_shared<ScoreCall>(call, *model, *std::move(command),
                                            model->config().limits.outbox_tokens);
  stream->Hold();
  if (absl::Status s = stream->Start(); !s.ok()) {
    stream->Release();
    return Refuse(call, s, proto.request_id());
  }
}

void GenerationService::Attach(Call call, const Bytes& in) {
  v1::AttachRequest proto;
  absl::Status status = call.Parse(in, &proto);
  if (status.ok()) status = Check(proto);
  if (!status.ok()) return Refuse(call, status, proto.request_id());
  auto stream = std::make_shared<GenerateCall>(call, proto.request_id());
  stream->Hold();
  if (status = stream->Attach(proto); !status.ok()) {
    stream->Release();
    return Refuse(call, status, proto.request_id());
  }
  stream->OnReady();
}

void GenerationService::Cancel(Call call, const Bytes& in) {
  Unary<v1::CancelRequest, v1::CancelResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::CancelRequest& request,
             v1::CancelResponse* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(Check(request));
        const auto record = services_.requests->Find(call.principal().tenant, request.request_id());
        response->set_cancelled(record.ok() && (*record)->Cancel());
        return absl::OkStatus();
      });
}

void GenerationService::Tokenize(Call call, const Bytes& in) {
  Unary<v1::TokenizeRequest, v1::TokenizeResponse>(
      std::move(call), in,
      [this](const v1::TokenizeRequest& request, v1::TokenizeResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(request.model()));
        SKEIN_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, model.converter().Tokenize(request));
        for (int32_t id : ids) {
          const absl::string_view piece = model.tokenizer().Bytes(id);
          response->add_ids(id);
          response->add_pieces(piece.data(), piece.size());
        }
        return absl::OkStatus();
      });
}

void GenerationService::Detokenize(Call call, const Bytes& in) {
  Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      std::move(call), in,
      [this](const v1::DetokenizeRequest& request,
             v1::DetokenizeResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(request.model()));
        SKEIN_ASSIGN_OR_RETURN(const std::string bytes, model.converter().Detokenize(request));
        response->set_bytes(bytes);
        response->set_text(ToUtf8(bytes));
        return absl::OkStatus();
      });
}

Service GenerationService::methods() {
  return {kName,
          {
              {"Generate", HandlerOf(this, &GenerationService::Generate)},
              {"Attach", HandlerOf(this, &GenerationService::Attach)},
              {"Score", HandlerOf(this, &GenerationService::Score)},
              {"Cancel", HandlerOf(this, &GenerationService::Cancel)},
              {"Tokenize", HandlerOf(this, &GenerationService::Tokenize)},
              {"Detokenize", HandlerOf(this, &GenerationService::Detokenize)},
          }};
}

}  // namespace skein::server
