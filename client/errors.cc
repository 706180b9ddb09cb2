#include "client/errors.h"

#include <map>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

// Marks a status that this program made, so that no server is blamed.
constexpr char kLocalReason[] = "LOCAL";

struct Details {
  std::string reason;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> fields;  // "sampling.top_p: must be in (0, 1]"
  double retry_seconds = -1;        // < 0: not told
};

Details DetailsOf(const grpc::Status& status) {
  Details details;
  google::rpc::Status proto;
  if (!proto.ParseFromString(status.error_details())) return details;
  for (const google::protobuf::Any& any : proto.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest bad;
    google::rpc::PreconditionFailure precondition;
    google::rpc::RetryInfo retry;
    if (any.UnpackTo(&info)) {
      details.reason = info.reason();
      details.metadata.insert(info.metadata().begin(), info.metadata().end());
    } else if (any.UnpackTo(&bad)) {
      for (const auto& field : bad.field_violations()) {
        details.fields.push_back(absl::StrCat(field.field(), ": ", field.description()));
      }
    } else if (any.UnpackTo(&precondition)) {
      for (const auto& violation : precondition.violations()) {
        if (absl::StrContains(status.error_message(), violation.description())) continue;
        details.fields.push_back(absl::StrCat(violation.subject(), ": ", violation.description()));
      }
    } else if (any.UnpackTo(&retry)) {
      details.retry_seconds = retry.retry_delay().seconds() + retry.retry_delay().nanos() * 1e-9;
    }
  }
  return details;
}

bool IsLocal(const Details& details) { return details.reason == kLocalReason; }

std::string Advice(const grpc::Status& status, const Details& details, const std::string& server) {
  if (IsLocal(details)) return "";
  if (IsUnreachable(status)) {
    return absl::StrCat("is skeind running on ", server,
                        "? `make serve` starts one; --server or SKEIN_SERVER names another");
  }
  switch (status.error_code()) {
    case grpc::StatusCode::NOT_FOUND:
      return "`skein conversations list` shows the conversations that exist, `skein info` the "
             "models";
    case grpc::StatusCode::ABORTED:
      return "another request writes to this conversation; try again when it has ended";
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::UNAVAILABLE:
      return "try again later";
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return "a longer --deadline gives it more time";
    case grpc::StatusCode::UNIMPLEMENTED:
      return "this server does not offer it; `skein info` shows what runs there";
    default:
      return "";
  }
}

// Messages already say what the only wrong field is; the list is for more.
bool SaysIt(const std::string& message, const std::vector<std::string>& fields) {
  for (const std::string& field : fields) {
    const std::string description = field.substr(field.find(": ") + 2);
    if (message.find(description) == std::string::npos) return false;
    if (message.find(field.substr(0, field.find(": "))) == std::string::npos) return false;
  }
  return true;
}

}  // namespace

std::string CodeName(grpc::StatusCode code) {
  return absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
}

std::string ReasonOf(const grpc::Status& status) { return DetailsOf(status).reason; }

double RetrySecondsOf(const grpc::Status& status) { return DetailsOf(status).retry_seconds; }

bool IsUnreachable(const grpc::Status& status) {
  return status.error_code() == grpc::StatusCode::UNAVAILABLE && status.error_details().empty();
}

std::string Describe(const grpc::Status& status, const std::string& server) {
  const Details details = DetailsOf(status);
  std::string line =
      IsLocal(details) ? status.error_message()
                       : absl::StrCat(CodeName(status.error_code()), ": ", status.error_message());
  if (!SaysIt(status.error_message(), details.fields)) {
    absl::StrAppend(&line, "; ", absl::StrJoin(details.fields, "; "));
  }
  if (!details.reason.empty() && !IsLocal(details) &&
      details.reason != CodeName(status.error_code())) {
    absl::StrAppend(&line, " (", details.reason, ")");
  }
  if (details.retry_seconds >= 0) {
    absl::StrAppend(&line, "; try again in ", details.retry_seconds, " s");
  } else if (const std::string advice = Advice(status, details, server); !advice.empty()) {
    absl::StrAppend(&line, "; ", advice);
  }
  return line;
}

std::string DescribeJson(const grpc::Status& status, const std::string& server) {
  const Details details = DetailsOf(status);
  nlohmann::json error = {{"code", CodeName(status.error_code())},
                          {"message", status.error_message()}};
  if (!details.reason.empty()) error["reason"] = details.reason;
  if (!details.metadata.empty()) error["metadata"] = details.metadata;
  if (!details.fields.empty()) error["fields"] = details.fields;
  if (details.retry_seconds >= 0) error["retry_seconds"] = details.retry_seconds;
  if (const std::string advice = Advice(status, details, server); !advice.empty())
    error["advice"] = advice;
  const nlohmann::json line = {{"error", error}};
  return line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

int ExitCodeOf(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::OK:
      return kExitOk;
    case grpc::StatusCode::CANCELLED:
      return kExitInterrupted;
    case grpc::StatusCode::NOT_FOUND:
      return kExitNotFound;
    case grpc::StatusCode::INVALID_ARGUMENT:
    case grpc::StatusCode::FAILED_PRECONDITION:
    case grpc::StatusCode::ALREADY_EXISTS:
    case grpc::StatusCode::OUT_OF_RANGE:
      return kExitRefused;
    case grpc::StatusCode::UNAVAILABLE:
      return IsUnreachable(status) ? kExitUnreachable : kExitTryLater;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
    case grpc::StatusCode::ABORTED:
      return kExitTryLater;
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return kExitDeadline;
    case grpc::StatusCode::UNAUTHENTICATED:
    case grpc::StatusCode::PERMISSION_DENIED:
      return kExitDenied;
    case grpc::StatusCode::UNIMPLEMENTED:
      return kExitUnimplemented;
    default:
      return kExitFailed;
  }
}

grpc::Status FromAbsl(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  google::rpc::ErrorInfo info;
  info.set_reason(kLocalReason);
  info.set_domain("skein-client");
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(std::string(status.message()));
  proto.add_details()->PackFrom(info);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()),
                      proto.SerializeAsString());
}

}  // namespace skein::client
