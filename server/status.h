#pragma once
// Errors: helpers that attach google.rpc details to an absl::Status (as payloads, keyed by type
// URL), and the one converter to google.rpc.Status, which grpc_status.h sends. api.md's table of
// codes is made here and in convert.cc.

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "engine/base/status.h"
#include "google/rpc/status.pb.h"

namespace skein::server {

// Collects what is wrong with a request, so that the client learns all of it at once.
class FieldViolations {
 public:
  void Add(absl::string_view field, absl::string_view description);
  bool empty() const { return violations_.empty(); }
  // INVALID_ARGUMENT with BadRequest; OK when there are none.
  absl::Status ToStatus() const;

 private:
  struct Violation {
    std::string field, description;
  };
  std::vector<Violation> violations_;
};

absl::Status BadField(absl::string_view field, absl::string_view description);
// UNIMPLEMENTED; ErrorInfo.metadata["field"] names the field or method.
absl::Status NotBuilt(absl::string_view field);
// FAILED_PRECONDITION with PreconditionFailure.
absl::Status Precondition(absl::string_view reason, absl::string_view subject,
                          absl::string_view description);
absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata);

// An error, ready to be sent. Every one leaves with ErrorInfo (domain "skein"); RESOURCE_EXHAUSTED
// of a full queue and UNAVAILABLE also with RetryInfo of `retry_delay`; FAILED_PRECONDITION with
// PreconditionFailure. A message from inside (INTERNAL, UNKNOWN) is kept.
google::rpc::Status ToRpc(const absl::Status& status, absl::Duration retry_delay);

// Whether ToRpc adds RetryInfo, so that the trailer grpc-retry-pushback-ms can go beside it.
bool IsRetryable(const absl::Status& status);

// The reason that ErrorInfo carries; also a metric label, so always one of a fixed set.
std::string ReasonOf(const absl::Status& status);

// "OK", "NOT_FOUND", ... for logs and metric labels.
const char* CodeName(absl::StatusCode code);

}  // namespace skein::server
