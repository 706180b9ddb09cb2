#include "server/info_service.h"

#include <utility>

#include "engine/base/check.h"
#include "server/version.h"

namespace skein::server {

namespace {

v1::Limits LimitsOf(const ServerConfig& config) {
  const LimitsConfig& c = config.limits;
  v1::Limits out;
  out.set_max_prompt_tokens(c.prompt_tokens);
  out.set_max_tokens(static_cast<int32_t>(c.max_tokens));
  out.set_max_stop_strings(static_cast<int32_t>(c.stop_strings));
  out.set_max_stop_string_bytes(static_cast<int32_t>(c.stop_string_bytes));
  out.set_max_logit_bias(static_cast<int32_t>(c.logit_bias));
  out.set_max_top_logprobs(static_cast<int32_t>(c.top_logprobs));
  out.set_max_queued(static_cast<int32_t>(c.queued));
  out.set_max_queued_tokens(c.queued_tokens);
  out.set_max_num_sequences(static_cast<int32_t>(c.num_sequences));
  out.set_max_score_continuations(static_cast<int32_t>(c.score_continuations));
  out.set_max_tokenize_bytes(c.tokenize_bytes);
  out.set_max_detokenize_ids(c.detokenize_ids);
  out.set_max_message_bytes(config.listen.max_message_bytes);
  out.set_max_stop_token_ids(static_cast<int32_t>(c.stop_token_ids));
  out.set_max_forks(static_cast<int32_t>(c.forks));
  return out;
}

}  // namespace

void InfoService::GetServerInfo(Call call, const Bytes& in) {
  Unary<v1::GetServerInfoRequest, v1::ServerInfo>(
      std::move(call), in,
      [this](const v1::GetServerInfoRequest&, v1::ServerInfo* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(""));
        const engine::EngineGauges gauges = model.engine().gauges();
        const kernels::DeviceInfo& device = model.instance().device->info();
        response->set_version(kVersion);
        response->set_device(device.name);
        response->set_device_tier(device.tier);
        response->set_slots(gauges.slots);
        ToProto(absl::Now() - start_, response->mutable_uptime());
        response->set_draining(gauges.draining);
        *response->mutable_limits() = LimitsOf(model.config());
        *response->mutable_default_sampling() = ToProto(model.config().DefaultSampling());
        *response->mutable_default_stopping() = ToProto(model.config().DefaultStopping());
        return absl::OkStatus();
      });
}

void InfoService::ListModels(Call call, const Bytes& in) {
  Unary<v1::ListModelsRequest, v1::ListModelsResponse>(
      std::move(call), in,
      [this](const v1::ListModelsRequest&, v1::ListModelsResponse* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(services_.models->CheckList());
        const std::string first = services_.models->default_name();
        for (const auto& [name, instance] : services_.models->Named()) {
          v1::Model* model = response->add_models();
          *model = instance->Describe();
          model->set_is_default(name == first);
          // The default comes first.
          if (model->is_default())
            response->mutable_models()->SwapElements(0, response->models_size() - 1);
        }
        return absl::OkStatus();
      });
}

Service InfoService::methods() {
  return {kName,
          {
              {"GetServerInfo", HandlerOf(this, &InfoService::GetServerInfo)},
              {"ListModels", HandlerOf(this, &InfoService::ListModels)},
          }};
}

}  // namespace skein::server
