#include "server/info_service.h"

#include <utility>

#include "server/version.h"

namespace skein::server {

InfoService::InfoService(const ServiceContext& services, const kernels::DeviceInfo& device,
                         v1::Model model)
    : services_(services), device_(device), model_(std::move(model)), start_(absl::Now()) {}

v1::Limits InfoService::Limits() const {
  const LimitsConfig& c = services_.config->limits;
  v1::Limits out;
  out.set_max_prompt_tokens(c.prompt_tokens);
  out.set_max_tokens(static_cast<int32_t>(c.max_tokens));
  out.set_max_stop_strings(static_cast<int32_t>(c.stop_strings));
  out.set_max_stop_string_bytes(static_cast<int32_t>(c.stop_string_bytes));
  out.set_max_logit_bias(static_cast<int32_t>(c.logit_bias));
  out.set_max_top_logprobs(static_cast<int32_t>(c.top_logprobs));
  out.set_max_queued(static_cast<int32_t>(c.queued));
  out.set_max_queued_tokens(c.queued_tokens);
  out.set_max_score_continuations(static_cast<int32_t>(c.score_continuations));
  out.set_max_message_bytes(services_.config->listen.max_message_bytes);
  return out;
}

grpc::ServerUnaryReactor* InfoService::GetServerInfo(Context* context, const Bytes* in,
                                                     Bytes* out) {
  return Unary<v1::GetServerInfoRequest, v1::ServerInfo>(
      services_, {kName, "GetServerInfo"}, context, in, out,
      [this](const v1::GetServerInfoRequest&, v1::ServerInfo* response) -> absl::Status {
        const engine::EngineGauges gauges = services_.engine->gauges();
        response->set_version(kVersion);
        response->set_device(device_.name);
        response->set_device_tier(device_.tier);
        response->set_slots(gauges.slots);
        ToProto(absl::Now() - start_, response->mutable_uptime());
        response->set_draining(gauges.draining);
        *response->mutable_limits() = Limits();
        *response->mutable_default_sampling() = ToProto(services_.config->DefaultSampling());
        *response->mutable_default_stopping() = ToProto(services_.config->DefaultStopping());
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* InfoService::ListModels(Context* context, const Bytes* in, Bytes* out) {
  return Unary<v1::ListModelsRequest, v1::ListModelsResponse>(
      services_, {kName, "ListModels"}, context, in, out,
      [this](const v1::ListModelsRequest&, v1::ListModelsResponse* response) -> absl::Status {
        *response->add_models() = model_;
        return absl::OkStatus();
      });
}

}  // namespace skein::server
