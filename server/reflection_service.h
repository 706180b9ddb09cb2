#pragma once
// grpc.reflection: tells tools what services there are. Our own and not gRPC's, which would answer
// callers without a token. Thread-safe.

#include <string>
#include <vector>

#include "grpcpp/generic/async_generic_service.h"
#include "server/call.h"

namespace skein::server {

// The two versions of grpc.reflection differ in their names only. One call for any number of
// requests. `services`, those at this port, outlive the call.
grpc::ServerGenericBidiReactor* NewReflection(const ServiceContext& context, Method method,
                                              grpc::CallbackServerContext* call,
                                              const std::vector<std::string>* services);

inline constexpr Method kReflection = {"grpc.reflection.v1.ServerReflection",
                                       "ServerReflectionInfo"};
inline constexpr Method kOldReflection = {"grpc.reflection.v1alpha.ServerReflection",
                                          "ServerReflectionInfo"};

}  // namespace skein::server
