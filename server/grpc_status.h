#pragma once
// Errors as gRPC sends them. Apart from status.h, which needs messages alone.

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "grpcpp/support/status.h"
#include "server/status.h"

namespace skein::server {

// As ToRpc says it: code and message, and all of it in the trailer grpc-status-details-bin.
inline grpc::Status ToGrpc(const absl::Status& status, absl::Duration retry_delay) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status out = ToRpc(status, retry_delay);
  return grpc::Status(static_cast<grpc::StatusCode>(out.code()), out.message(),
                      out.SerializeAsString());
}

}  // namespace skein::server
