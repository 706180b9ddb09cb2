#include "server/control_service.h"

#include <memory>
#include <utility>

#include "engine/base/check.h"
#include "server/convert_control.h"
#include "server/load_call.h"
#include "server/status.h"

namespace skein::server {
namespace {

v1::ModelLoad LoadOf(const ServedInstance& instance) {
  const engine::EngineGauges gauges = instance.engine->gauges();
  const LoadMeter::Rates rates = instance.meter->rates();
  v1::ModelLoad load;
  load.set_name(instance.name());
  load.set_fingerprint(instance.description.fingerprint());
  load.set_running(gauges.running);
  load.set_waiting(gauges.waiting);
  load.set_waiting_tokens(gauges.waiting_tokens);
  ToProto(gauges.oldest_waiting, load.mutable_queue_age());
  load.set_slots(gauges.slots);
  load.set_slots_used(gauges.slots_used);
  load.set_tokens_per_second(rates.tokens);
  load.set_requests_per_second(rates.requests);
  ToProto(instance.engine->RetryDelay(), load.mutable_retry_delay());
  load.set_bytes(instance.bytes());
  return load;
}

}  // namespace

void ControlService::LoadModel(Call call, const Bytes& in) {
  v1::LoadModelRequest request;
  absl::Status status = call.Parse(in, &request);
  auto stream = std::make_shared<LoadCall>(call, request.path());
  stream->Hold();
  if (status.ok()) status = stream->Start(request, services_.manager);
  if (status.ok()) return;
  stream->Release();
  LogLine line(Call::LevelOf(status), "rpc");
  call.Log(line, status);
  Refuse(call, status);
}

void ControlService::UnloadModel(Call call, const Bytes& in) {
  Unary<v1::UnloadModelRequest, v1::UnloadModelResponse>(
      std::move(call), in,
      [this](const v1::UnloadModelRequest& request,
             v1::UnloadModelResponse* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(Check(request));
        SKEIN_ASSIGN_OR_RETURN(const ModelManager::Unloaded unloaded,
                               services_.manager->Unload(request.name(), request.force()));
        const engine::EngineGauges gauges = unloaded.instance->engine->gauges();
        response->set_running(gauges.running + gauges.waiting);
        response->set_default_model(unloaded.default_model);
        return absl::OkStatus();
      });
}

void ControlService::GetLoad(Call call, const Bytes& in) {
  Unary<v1::GetLoadRequest, v1::GetLoadResponse>(
      std::move(call), in,
      [this](const v1::GetLoadRequest&, v1::GetLoadResponse* response) -> absl::Status {
        const std::string first = services_.models->default_name();
        for (const auto& [name, instance] : services_.models->Named()) {
          v1::ModelLoad* load = response->add_models();
          *load = LoadOf(*instance);
          load->set_is_default(name == first);
        }
        for (const auto& instance : services_.models->Retired()) {
          v1::ModelLoad* load = response->add_models();
          *load = LoadOf(*instance);
          load->set_retired(true);
        }
        const Lifecycle::State state = services_.lifecycle->state();
        response->set_draining(state == Lifecycle::kDraining || state == Lifecycle::kStopping);
        response->set_serving(state == Lifecycle::kReady);
        if (!response->serving()) response->set_not_serving_reason(Lifecycle::Name(state));
        response->set_loading(services_.manager->loading());
        return absl::OkStatus();
      });
}

void ControlService::Drain(Call call, const Bytes& in) {
  Unary<v1::DrainRequest, v1::DrainResponse>(
      std::move(call), in,
      [this](const v1::DrainRequest& request, v1::DrainResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const absl::Duration timeout, ToTimeout(request));
        services_.lifecycle->BeginDrain(absl::Now() + timeout, services_.health_changed);
        LogLine(LogLevel::kInfo, "draining").With("by", "Control.Drain");
        for (const auto& instance : services_.models->All()) {
          const engine::EngineGauges gauges = instance->engine->gauges();
          response->set_running(response->running() + gauges.running);
          response->set_waiting(response->waiting() + gauges.waiting);
        }
        return absl::OkStatus();
      });
}

void ControlService::Undrain(Call call, const Bytes& in) {
  Unary<v1::UndrainRequest, v1::UndrainResponse>(
      std::move(call), in, [this](const v1::UndrainRequest&, v1::UndrainResponse*) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(services_.lifecycle->Undrain());
        services_.health_changed();
        LogLine(LogLevel::kInfo, "serving again").With("by", "Control.Undrain");
        return absl::OkStatus();
      });
}

void ControlService::ReloadConfig(Call call, const Bytes& in) {
  Unary<v1::ReloadConfigRequest, v1::ReloadConfigResponse>(
      std::move(call), in,
      [this](const v1::ReloadConfigRequest&, v1::ReloadConfigResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const ReloadPlan plan, services_.reload());
        response->mutable_applied()->Add(plan.applied.begin(), plan.applied.end());
        response->mutable_ignored()->Add(plan.ignored.begin(), plan.ignored.end());
        return absl::OkStatus();
      });
}

Service ControlService::methods() {
  return {kName,
          {
              {"LoadModel", HandlerOf(this, &ControlService::LoadModel)},
              {"UnloadModel", HandlerOf(this, &ControlService::UnloadModel)},
              {"GetLoad", HandlerOf(this, &ControlService::GetLoad)},
              {"Drain", HandlerOf(this, &ControlService::Drain)},
              {"Undrain", HandlerOf(this, &ControlService::Undrain)},
              {"ReloadConfig", HandlerOf(this, &ControlService::ReloadConfig)},
          }};
}

}  // namespace skein::server
