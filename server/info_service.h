#pragma once
// skein.v1.Info. Thread-safe.

#include "server/call.h"
#include "skein/v1/info.grpc.pb.h"

namespace skein::server {

using RawInfo = v1::Info::WithRawCallbackMethod_GetServerInfo<
    v1::Info::WithRawCallbackMethod_ListModels<v1::Info::Service>>;

class InfoService final : public RawInfo {
 public:
  static constexpr char kName[] = "skein.v1.Info";

  explicit InfoService(const ServiceContext& services) : services_(services), start_(absl::Now()) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerUnaryReactor* GetServerInfo(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* ListModels(Context* context, const Bytes* in, Bytes* out) override;

 private:
  const ServiceContext services_;
  const absl::Time start_;
};

}  // namespace skein::server
