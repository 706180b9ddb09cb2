#include "server/status.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/message.h"
#include "google/rpc/error_details.pb.h"

namespace skein::server {
namespace {

constexpr char kDomain[] = "skein";
constexpr char kTypePrefix[] = "type.googleapis.com/";
// Trailers must fit in a client's metadata limit (8 KiB by default), details included.
constexpr size_t kMaxMessage = 1024;
constexpr int kMaxViolations = 16;

std::string TypeUrl(const google::protobuf::Message& detail) {
  return absl::StrCat(kTypePrefix, detail.GetTypeName());
}

absl::Status Attach(absl::Status status, const google::protobuf::Message& detail) {
  status.SetPayload(TypeUrl(detail), absl::Cord(detail.SerializeAsString()));
  return status;
}

bool Has(const absl::Status& status, const google::protobuf::Message& detail) {
  return status.GetPayload(TypeUrl(detail)).has_value();
}

// Cuts at a code point's start.
std::string Shorten(absl::string_view text) {
  if (text.size() <= kMaxMessage) return std::string(text);
  size_t n = kMaxMessage;
  while (n > 0 && (static_cast<unsigned char>(text[n]) & 0xC0) == 0x80) --n;
  return absl::StrCat(text.substr(0, n), "...");
}

void SetDuration(absl::Duration d, google::protobuf::Duration* out) {
  out->set_seconds(absl::IDivDuration(d, absl::Seconds(1), &d));
  out->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(d)));
}

absl::Status AddMissingDetails(absl::Status status, absl::Duration retry_delay) {
  google::rpc::ErrorInfo info;
  const std::string reason = ReasonOf(status);
  if (!Has(status, info)) {
    info.set_reason(reason);
    info.set_domain(kDomain);
    status.ForEachPayload([&](absl::string_view key, const absl::Cord& value) {
      if (absl::ConsumePrefix(&key, base::kMetadataPrefix)) {
        (*info.mutable_metadata())[std::string(key)] = std::string(value);
      }
    });
    status = Attach(std::move(status), info);
  }
  google::rpc::RetryInfo retry;
  if (IsRetryable(status) && !Has(status, retry)) {
    SetDuration(retry_delay, retry.mutable_retry_delay());
    status = Attach(std::move(status), retry);
  }
  google::rpc::BadRequest bad;
  const absl::optional<absl::Cord> field = status.GetPayload(base::kFieldPayload);
  if (field.has_value() && !Has(status, bad)) {
    auto* violation = bad.add_field_violations();
    violation->set_field(std::string(*field));
    absl::string_view description = status.message();
    absl::ConsumePrefix(&description, absl::StrCat(violation->field(), ": "));
    violation->set_description(Shorten(description));
    status = Attach(std::move(status), bad);
  }
  google::rpc::PreconditionFailure failure;
  if (absl::IsFailedPrecondition(status) && !Has(status, failure)) {
    auto* violation = failure.add_violations();
    violation->set_type(reason);
    violation->set_description(Shorten(status.message()));
    status = Attach(std::move(status), failure);
  }
  return status;
}

}  // namespace

void FieldViolations::Add(absl::string_view field, absl::string_view description) {
  if (violations_.size() < kMaxViolations) {
    violations_.push_back({std::string(field), Shorten(description)});
  }
}

absl::Status FieldViolations::ToStatus() const {
  if (violations_.empty()) return absl::OkStatus();
  google::rpc::BadRequest detail;
  std::string message;
  for (const Violation& v : violations_) {
    auto* out = detail.add_field_violations();
    out->set_field(v.field);
    out->set_description(v.description);
    absl::StrAppend(&message, message.empty() ? "" : "; ", v.field, ": ", v.description);
  }
  return Attach(base::MakeStatus(absl::StatusCode::kInvalidArgument, "INVALID_FIELD", message),
                detail);
}

absl::Status BadField(absl::string_view field, absl::string_view description) {
  FieldViolations violations;
  violations.Add(field, description);
  return violations.ToStatus();
}

absl::Status NotBuilt(absl::string_view field) {
  return WithErrorInfo(
      absl::UnimplementedError(absl::StrCat(field, " is not supported by this server yet")),
      "NOT_SUPPORTED", {{"field", std::string(field)}});
}

absl::Status Precondition(absl::string_view reason, absl::string_view subject,
                          absl::string_view description) {
  google::rpc::PreconditionFailure failure;
  auto* violation = failure.add_violations();
  violation->set_type(std::string(reason));
  violation->set_subject(std::string(subject));
  violation->set_description(Shorten(description));
  return Attach(base::MakeStatus(absl::StatusCode::kFailedPrecondition, reason, description),
                failure);
}

absl::Status WithErrorInfo(absl::Status status, absl::string_view reason,
                           const std::map<std::string, std::string>& metadata) {
  google::rpc::ErrorInfo info;
  info.set_reason(std::string(reason));
  info.set_domain(kDomain);
  for (const auto& [key, value] : metadata) (*info.mutable_metadata())[key] = Shorten(value);
  return Attach(base::WithReason(std::move(status), reason), info);
}

std::string ReasonOf(const absl::Status& status) {
  const std::string reason = base::Reason(status);
  return reason.empty() ? absl::StatusCodeToString(status.code()) : reason;
}

bool IsRetryable(const absl::Status& status) {
  // A slow reader gains nothing from sending its request again by itself.
  return absl::IsUnavailable(status) ||
         (absl::IsResourceExhausted(status) && base::Reason(status) != "SLOW_READER" &&
          !status.GetPayload(base::kNoRetryPayload).has_value());
}

google::rpc::Status ToRpc(const absl::Status& status, absl::Duration retry_delay) {
  google::rpc::Status out;
  out.set_code(static_cast<int>(status.code()));
  out.set_message(Shorten(status.message()));
  AddMissingDetails(status, retry_delay)
      .ForEachPayload([&](absl::string_view type_url, const absl::Cord& bytes) {
        if (!absl::StartsWith(type_url, kTypePrefix)) return;
        google::protobuf::Any* detail = out.add_details();
        detail->set_type_url(std::string(type_url));
        detail->set_value(std::string(bytes));
      });
  return out;
}

const char* CodeName(absl::StatusCode code) {
  static constexpr const char* kNames[] = {"OK",
                                           "CANCELLED",
                                           "UNKNOWN",
                                           "INVALID_ARGUMENT",
                                           "DEADLINE_EXCEEDED",
                                           "NOT_FOUND",
                                           "ALREADY_EXISTS",
                                           "PERMISSION_DENIED",
                                           "RESOURCE_EXHAUSTED",
                                           "FAILED_PRECONDITION",
                                           "ABORTED",
                                           "OUT_OF_RANGE",
                                           "UNIMPLEMENTED",
                                           "INTERNAL",
                                           "UNAVAILABLE",
                                           "DATA_LOSS",
                                           "UNAUTHENTICATED"};
  const int number = static_cast<int>(code);
  return number >= 0 && number <= 16 ? kNames[number] : "UNKNOWN";
}

}  // namespace skein::server
