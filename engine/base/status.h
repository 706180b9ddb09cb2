#pragma once
// A status that carries a machine-readable reason beside its code and message. The server sends it
// as google.rpc.ErrorInfo.reason; metrics count by it. Reasons are UPPER_SNAKE_CASE, part of the
// API, and listed at the top of proto/skein/v1/generation.proto; a test compares.
//
// A status without a reason is sent with its code's name as the reason. Metadata is sent as
// ErrorInfo.metadata.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace skein::base {

inline constexpr char kReasonPayload[] = "skein.reason";
inline constexpr char kMetadataPrefix[] = "skein.metadata.";

inline absl::Status WithReason(absl::Status status, absl::string_view reason) {
  status.SetPayload(kReasonPayload, absl::Cord(reason));
  return status;
}

inline absl::Status MakeStatus(absl::StatusCode code, absl::string_view reason,
                               absl::string_view message) {
  return WithReason(absl::Status(code, message), reason);
}

// INVALID_ARGUMENT of one field of a request, by its path in the API: it is sent with a BadRequest.
inline constexpr char kFieldPayload[] = "skein.field";
inline absl::Status InvalidField(absl::string_view field, absl::string_view description) {
  absl::Status status = MakeStatus(absl::StatusCode::kInvalidArgument, "INVALID_FIELD",
                                   absl::StrCat(field, ": ", description));
  status.SetPayload(kFieldPayload, absl::Cord(field));
  return status;
}

// Empty when the status carries none.
inline std::string Reason(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kReasonPayload);
  return payload.has_value() ? std::string(*payload) : std::string();
}

// Of a limit that time does not lift: no RetryInfo goes with it.
inline constexpr char kNoRetryPayload[] = "skein.no_retry";
inline absl::Status WaitingDoesNotHelp(absl::Status status) {
  status.SetPayload(kNoRetryPayload, absl::Cord());
  return status;
}

inline void SetMetadata(absl::Status* status, absl::string_view key, absl::string_view value) {
  status->SetPayload(absl::StrCat(kMetadataPrefix, key), absl::Cord(value));
}

}  // namespace skein::base
