#include "server/call.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/status.h"

namespace skein::server {

Call::Call(const ServiceContext& services, Method method, grpc::CallbackServerContext* context)
    : services_(&services), method_(method), context_(context), start_(absl::Now()) {
  services.metrics->CallStarted(method.service, method.name);
}

absl::Time Call::deadline() const {
  const std::chrono::system_clock::time_point deadline = context_->deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

grpc::Status Call::End(const absl::Status& status, bool refused) {
  const absl::Duration delay = services_->engine->RetryDelay();
  const grpc::Status out = ToGrpc(status, delay);
  services_->metrics->CallHandled(method_.service, method_.name, CodeName(out.error_code()),
                                  absl::Now() - start_);
  if (refused) {
    services_->metrics->Rejected(ReasonOf(status));
    if (IsRetryable(status)) {
      context_->AddTrailingMetadata("grpc-retry-pushback-ms",
                                    absl::StrCat(absl::ToInt64Milliseconds(delay)));
    }
  }
  return out;
}

LogLevel Call::LevelOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      return LogLevel::kError;
    default:
      return status.ok() ? LogLevel::kDebug : LogLevel::kInfo;
  }
}

void Call::Log(LogLine& line, const absl::Status& status) const {
  line.With("method", absl::StrCat(method_.service, "/", method_.name))
      .With("code", CodeName(static_cast<grpc::StatusCode>(status.code())))
      .With("seconds", absl::ToDoubleSeconds(absl::Now() - start_));
  if (!status.ok())
    line.With("reason", ReasonOf(status)).With("error", std::string(status.message()));
}

std::string NewRequestId() {
  char bytes[16];
  SKEIN_CHECK(getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes));
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

}  // namespace skein::server
