#include "server/call.h"

#include <sys/random.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_context.h"
#include "server/grpc_status.h"
#include "server/trace_context.h"

namespace skein::server {
namespace {

// Loading takes seconds to minutes, which no queue can tell.
constexpr absl::Duration kRetryLoading = absl::Seconds(1);

absl::string_view View(grpc::string_ref text) { return {text.data(), text.size()}; }

// Names in the client's certificate; gRPC has them only when the chain was verified.
void AddNames(const grpc::AuthContext& peer, const char* property,
              std::vector<absl::string_view>* names) {
  for (const grpc::string_ref& name : peer.FindPropertyValues(property)) {
    names->push_back(View(name));
  }
}

}  // namespace

absl::StatusOr<ModelUse> ServiceContext::Use(absl::string_view model) const {
  SKEIN_ASSIGN_OR_RETURN(ModelRegistry::Ref instance, models->Resolve(model));
  return ModelUse(config->Get(), std::move(instance));
}

Call::Call(const ServiceContext& services, Method method, grpc::CallbackServerContext* context,
           Rpc* rpc)
    : services_(&services),
      method_(method),
      context_(context),
      rpc_(rpc),
      counted_(services.connections->BeginCall(context->peer())),
      start_(absl::Now()),
      principal_(Nobody()) {
  services.metrics->CallStarted(method.service, method.name);
  Credentials credentials;
  const auto [first, last] = context->client_metadata().equal_range("authorization");
  for (auto it = first; it != last; ++it) credentials.authorization.push_back(View(it->second));
  const std::shared_ptr<const grpc::AuthContext> peer = context->auth_context();
  if (peer != nullptr && peer->IsPeerAuthenticated()) {
    AddNames(*peer, GRPC_X509_SAN_PROPERTY_NAME, &credentials.certificate);
    AddNames(*peer, GRPC_X509_CN_PROPERTY_NAME, &credentials.certificate);
  }
  auto principal = services.auth->Authenticate(method.service, method.name, credentials);
  if (principal.ok()) {
    principal_ = *std::move(principal);
  } else {
    access_ = principal.status();
    services.metrics->AuthFailed(ReasonOf(access_));
  }
}

absl::Status Call::Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* request) const {
  return access_.ok() ? server::Parse(bytes, request) : access_;
}

absl::StatusOr<ModelUse> Call::Use(absl::string_view model) {
  SKEIN_ASSIGN_OR_RETURN(ModelUse use, services_->Use(model));
  model_ = use;
  return use;
}

absl::Time Call::deadline() const {
  const std::chrono::system_clock::time_point deadline = context_->deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return absl::InfiniteFuture();
  return absl::FromChrono(deadline);
}

absl::Duration Call::RetryDelay(const absl::Status& status) const {
  if (base::Reason(status) == "LOADING") return kRetryLoading;
  return model_.has_value() ? model_->engine().RetryDelay() : services_->models->RetryDelay();
}

grpc::Status Call::End(const absl::Status& status, bool refused) {
  const absl::Duration delay = RetryDelay(status);
  const grpc::Status out = ToGrpc(status, delay);
  services_->metrics->CallHandled(method_.service, method_.name, CodeName(status.code()),
                                  absl::Now() - start_);
  if (refused) {
    services_->metrics->Rejected(ReasonOf(status),
                                 model_.has_value() ? model_->instance().name() : "");
  }
  if (IsRetryable(status)) {  // beside RetryInfo, for gRPC's own retries
    context_->AddTrailingMetadata("grpc-retry-pushback-ms",
                                  absl::StrCat(absl::ToInt64Milliseconds(delay)));
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
      .With("code", CodeName(status.code()))
      .With("seconds", absl::ToDoubleSeconds(absl::Now() - start_))
      .With("peer", context_->peer());
  if (!principal_->tenant.empty()) line.With("tenant", principal_->tenant);
  const auto trace = context_->client_metadata().find("traceparent");
  if (trace != context_->client_metadata().end()) {
    if (const std::optional<TraceContext> found = ParseTraceparent(View(trace->second))) {
      line.With("trace_id", found->trace_id).With("parent_id", found->parent_id);
    }
  }
  if (!status.ok())
    line.With("reason", ReasonOf(status)).With("error", std::string(status.message()));
}

std::string NewRequestId() {
  char bytes[16];
  SKEIN_CHECK(getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes));
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

}  // namespace skein::server
