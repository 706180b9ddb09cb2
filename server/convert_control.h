#pragma once
// Requests of skein.v1.Control -> what the server is told, with all validation that asks nothing
// but the request. Pure.

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "skein/v1/control.pb.h"

namespace skein::server {

// Its path is not looked for yet, see model_files.h.
absl::StatusOr<ModelSource> ToModelSource(const skein::v1::LoadModelRequest& in);
absl::Status CheckModelName(const std::string& name);
absl::Status Check(const skein::v1::UnloadModelRequest& in);
// How long what runs may go on; infinite when unset.
absl::StatusOr<absl::Duration> ToTimeout(const skein::v1::DrainRequest& in);

}  // namespace skein::server
