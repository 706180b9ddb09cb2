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

// An overloaded server spends nothing on a request that it cannot take.
absl::Status CheckRoom(const Call& call, const ServedInstance& instance) {
  const Principal& principal = call.principal();
  return instance.engine->CheckOpen(principal.tenant, principal.quotas);
}

// The same before the request is parsed, where it can be for one model only. Who may not ask at all
// is told that instead.
absl::Status CheckRoom(Call* call) {
  if (!call->access().ok()) return absl::OkStatus();
  const ModelRegistry::Ref only = call->services().models->Only();
  absl::Status status = only == nullptr ? absl::OkStatus() : CheckRoom(*call, *only);
  if (!status.ok()) call->Use("").status().IgnoreError();  // it is counted as that model's
  return status;
}

// Whether there is a request of this id, so that this one may be a retry of it: one that runs, or
// whose result is kept, needs no room.
bool IsKnown(const Call& call, const std::string& id) {
  return !id.empty() && call.services().requests->Find(call.principal().tenant, id).ok();
}

// Told by the first bytes.
bool IsKnown(const Call& call, const grpc::ByteBuffer& in) {
  return IsKnown(call,
                 LeadingString(in, v1::GenerateRequest::kRequestIdFieldNumber, kMaxRequestId));
}

// What a retry finds; kNew: this is none.
absl::StatusOr<RequestLog::Opened> FindRetried(const Call& call, const v1::GenerateRequest& proto) {
  if (!IsKnown(call, proto.request_id()))
    return RequestLog::Opened{RequestLog::Opened::kNew, nullptr};
  return call.services().requests->Look(call.principal().tenant, proto.request_id(),
                                        FingerprintOf(proto));
}

// The stream of the call, which `begin(GenerateCall&) -> absl::Status` gives something to read.
template <typename Begin>
void Stream(Call& call, const std::string& request_id, Begin begin) {
  auto stream = std::make_shared<GenerateCall>(call, request_id);
  stream->Hold();
  if (absl::Status status = begin(*stream); !status.ok()) {
    stream->Release();
    return Refuse(call, status, request_id);
  }
  stream->OnReady();
}

}  // namespace

void GenerationService::Generate(Call call, const Bytes& in) {
  if (absl::Status s = CheckRoom(&call); !s.ok() && !IsKnown(call, in)) {
    return Refuse(call, s, "");
  }
  v1::GenerateRequest proto;
  if (absl::Status s = call.Parse(in, &proto); !s.ok()) return Refuse(call, s, "");
  const absl::StatusOr<RequestLog::Opened> retried = FindRetried(call, proto);
  if (!retried.ok()) return Refuse(call, retried.status(), proto.request_id());
  if (retried->how == RequestLog::Opened::kJoined) {  // whatever has become of models and limits
    return Stream(call, proto.request_id(),
                  [&](GenerateCall& stream) { return stream.Join(retried->record); });
  }
  const absl::StatusOr<ModelUse> model = call.Use(proto.model());
  if (!model.ok()) return Refuse(call, model.status(), proto.request_id());
  if (retried->how == RequestLog::Opened::kNew) {
    const absl::Status room = CheckRoom(call, model->instance());
    if (!room.ok()) return Refuse(call, room, proto.request_id());
  }
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
  Stream(call, request_id, [&](GenerateCall& stream) {
    return stream.Generate({*model, std::move(spec), std::move(command->request)});
  });
}

void GenerationService::Score(Call call, const Bytes& in) {
  if (absl::Status s = CheckRoom(&call); !s.ok()) return Refuse(call, s, "");
  v1::ScoreRequest proto;
  if (absl::Status s = call.Parse(in, &proto); !s.ok()) return Refuse(call, s, "");
  const absl::StatusOr<ModelUse> model = call.Use(proto.model());
  if (!model.ok()) return Refuse(call, model.status(), proto.request_id());
  if (absl::Status room = CheckRoom(call, model->instance()); !room.ok()) {
    return Refuse(call, room, proto.request_id());
  }
  absl::StatusOr<ScoreCommand> command = model->converter().ToEngine(proto);
  if (!command.ok()) return Refuse(call, command.status(), proto.request_id());

  auto stream = std::make_shared<ScoreCall>(call, *model, *std::move(command));
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
  Stream(call, proto.request_id(), [&](GenerateCall& stream) { return stream.Attach(proto); });
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
        SKEIN_ASSIGN_OR_RETURN(*response, model.converter().Tokenize(request));
        return absl::OkStatus();
      });
}

void GenerationService::Detokenize(Call call, const Bytes& in) {
  Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
      std::move(call), in,
      [this](const v1::DetokenizeRequest& request,
             v1::DetokenizeResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(request.model()));
        SKEIN_ASSIGN_OR_RETURN(*response, model.converter().Detokenize(request));
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
