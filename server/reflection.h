#pragma once
// What grpc.reflection tells, from the descriptors that this program is built with. Pure.

#include <string>
#include <vector>

#include "grpc/reflection/v1/reflection.pb.h"

namespace skein::server {

// `services`: those at the port, by full name.
grpc::reflection::v1::ServerReflectionResponse Reflect(
    const grpc::reflection::v1::ServerReflectionRequest& request,
    const std::vector<std::string>& services);

}  // namespace skein::server
