#pragma once
// grpc.reflection: tells tools what services there are. Our own and not gRPC's, which would answer
// callers without a token. Thread-safe.

#include <string>
#include <vector>

#include "grpc/reflection/v1/reflection.grpc.pb.h"
#include "grpc/reflection/v1alpha/reflection.grpc.pb.h"
#include "server/call.h"

namespace skein::server {

// One request answered from the descriptors that this program is built with.
grpc::reflection::v1::ServerReflectionResponse Reflect(
    const grpc::reflection::v1::ServerReflectionRequest& request,
    const std::vector<std::string>& services);

// The two versions differ in their name only. `Base` is the generated service.
template <typename Base>
class ReflectionServiceOf final : public Base {
 public:
  // `names`: of the services at this port. `method`: this one's.
  ReflectionServiceOf(const ServiceContext& services, Method method, std::vector<std::string> names)
      : services_(services), method_(method), names_(std::move(names)) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ServerReflectionInfo(
      grpc::CallbackServerContext* context) override;

 private:
  const ServiceContext services_;
  const Method method_;
  const std::vector<std::string> names_;
};

using ReflectionService = ReflectionServiceOf<
    grpc::reflection::v1::ServerReflection::WithRawCallbackMethod_ServerReflectionInfo<
        grpc::reflection::v1::ServerReflection::Service>>;
using OldReflectionService = ReflectionServiceOf<
    grpc::reflection::v1alpha::ServerReflection::WithRawCallbackMethod_ServerReflectionInfo<
        grpc::reflection::v1alpha::ServerReflection::Service>>;

inline constexpr Method kReflection = {"grpc.reflection.v1.ServerReflection",
                                       "ServerReflectionInfo"};
inline constexpr Method kOldReflection = {"grpc.reflection.v1alpha.ServerReflection",
                                          "ServerReflectionInfo"};

}  // namespace skein::server
