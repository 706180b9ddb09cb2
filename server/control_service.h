#pragma once
// skein.v1.Control: operating the server while it serves. Thread-safe.

#include "absl/status/statusor.h"
#include "server/call.h"
#include "server/config_reload.h"
#include "server/lifecycle.h"
#include "server/model_manager.h"
#include "skein/v1/control.grpc.pb.h"

namespace skein::server {

using RawControl = v1::Control::WithRawCallbackMethod_LoadModel<
    v1::Control::WithRawCallbackMethod_UnloadModel<v1::Control::WithRawCallbackMethod_GetLoad<
        v1::Control::WithRawCallbackMethod_Drain<v1::Control::WithRawCallbackMethod_Undrain<
            v1::Control::WithRawCallbackMethod_ReloadConfig<v1::Control::Service>>>>>>;

class ControlService final : public RawControl {
 public:
  static constexpr char kName[] = "skein.v1.Control";

  explicit ControlService(const ServiceContext& services) : services_(services) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerWriteReactor<Bytes>* LoadModel(Context* context, const Bytes* in) override;
  grpc::ServerUnaryReactor* UnloadModel(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* GetLoad(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Drain(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Undrain(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* ReloadConfig(Context* context, const Bytes* in, Bytes* out) override;

 private:
  const ServiceContext services_;
};

}  // namespace skein::server
