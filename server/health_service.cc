#include "server/health_service.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/outbox.h"
#include "server/status.h"

namespace skein::server {
namespace {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;
using ServingStatus = HealthCheckResponse::ServingStatus;

std::set<std::string> WithWholeServer(std::vector<std::string> services) {
  std::set<std::string> out(services.begin(), services.end());
  out.insert("");
  return out;
}

}  // namespace

// One Watch: shows the newest state; states that a slow reader misses are not kept.
class HealthWatch final : public RpcStream, public std::enable_shared_from_this<HealthWatch> {
 public:
  HealthWatch(Call call, HealthBoard* board, std::string service)
      : call_(std::move(call)), board_(board), service_(std::move(service)) {}

  void Begin() {
    self_ = shared_from_this();
    call_.rpc()->SetStream(this);
    board_->Add(self_);
  }

  void Show() {
    Act([this](WriteGate*) {
      const ServingStatus status = board_->StatusOf(service_);
      if (shown_ != status) pending_ = status;
    });
  }
  void End(const absl::Status& status) {
    Act([&](WriteGate* gate) { gate->End(status); });
  }

 private:
  using Action = WriteAction<ServingStatus>;

  void OnWriteDone(bool ok) override {
    Act([ok](WriteGate* gate) { gate->WriteDone(ok); });
  }
  void OnCancel() override {
    Act([](WriteGate* gate) { gate->Drop(absl::CancelledError("the client is gone")); });
  }
  void OnDone() override {
    board_->Remove(self_);
    self_.reset();  // may delete this
  }

  // What changes the state, then what follows from it outside of the lock.
  template <typename Change>
  void Act(Change change) {
    const auto self = shared_from_this();
    Action action;
    {
      absl::MutexLock lock(&mu_);
      change(&gate_);
      if (!gate_.open()) return;
      if (gate_.dropped()) pending_.reset();
      if (pending_.has_value()) shown_ = *pending_;
      action = gate_.Next(std::exchange(pending_, std::nullopt), /*last=*/true);
    }
    if (action.kind == Action::kNothing) return;
    if (action.kind == Action::kWrite || action.kind == Action::kWriteAndFinish) {
      HealthCheckResponse response;
      response.set_status(action.event);
      Serialize(response, &writing_);
    }
    if (action.kind == Action::kWrite) return call_.rpc()->StartWrite(&writing_);
    grpc::Status status = call_.End(action.status);
    if (action.kind == Action::kFinish) return call_.rpc()->Finish(std::move(status));
    call_.rpc()->StartWriteAndFinish(&writing_, grpc::WriteOptions(), std::move(status));
  }

  Call call_;
  HealthBoard* const board_;
  const std::string service_;
  grpc::ByteBuffer writing_;           // belongs to the write in flight
  std::shared_ptr<HealthWatch> self_;  // the RPC's, until OnDone
  absl::Mutex mu_;
  WriteGate gate_ ABSL_GUARDED_BY(mu_);
  std::optional<ServingStatus> pending_ ABSL_GUARDED_BY(mu_);
  std::optional<ServingStatus> shown_ ABSL_GUARDED_BY(mu_);
};

HealthBoard::HealthBoard(std::vector<std::string> services)
    : services_(WithWholeServer(std::move(services))) {}

ServingStatus HealthBoard::StatusOf(const std::string& service) const {
  if (services_.count(service) == 0) return HealthCheckResponse::SERVICE_UNKNOWN;
  absl::MutexLock lock(&mu_);
  return serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

// Watches are told outside of the lock: a write may end the watch on this very thread.
void HealthBoard::SetServing(bool serving) {
  std::set<std::shared_ptr<HealthWatch>> watches;
  {
    absl::MutexLock lock(&mu_);
    serving_ = serving;
    watches = watches_;
  }
  for (const auto& watch : watches) watch->Show();
}

void HealthBoard::Close() {
  std::set<std::shared_ptr<HealthWatch>> watches;
  {
    absl::MutexLock lock(&mu_);
    closed_ = true;
    watches = watches_;
  }
  for (const auto& watch : watches) watch->End(absl::UnavailableError("the server is going"));
}

void HealthBoard::Add(const std::shared_ptr<HealthWatch>& watch) {
  bool closed = false;
  {
    absl::MutexLock lock(&mu_);
    watches_.insert(watch);
    closed = closed_;
  }
  watch->Show();
  if (closed) watch->End(absl::UnavailableError("the server is going"));
}

void HealthBoard::Remove(const std::shared_ptr<HealthWatch>& watch) {
  absl::MutexLock lock(&mu_);
  watches_.erase(watch);
}

void HealthService::Check(Call call, const Bytes& in) {
  Unary<HealthCheckRequest, HealthCheckResponse>(
      std::move(call), in,
      [this](const HealthCheckRequest& request, HealthCheckResponse* response) -> absl::Status {
        const ServingStatus status = board_->StatusOf(request.service());
        if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
          return base::MakeStatus(absl::StatusCode::kNotFound, "SERVICE_NOT_FOUND",
                                  "there is no such service here");
        }
        response->set_status(status);
        return absl::OkStatus();
      });
}

void HealthService::Watch(Call call, const Bytes& in) {
  HealthCheckRequest request;
  if (const absl::Status status = call.Parse(in, &request); !status.ok()) {
    return Refuse(call, status, /*refused=*/false);
  }
  auto watch = std::make_shared<HealthWatch>(std::move(call), board_, request.service());
  watch->Begin();
}

Service HealthService::methods() {
  return {kName,
          {
              {"Check", HandlerOf(this, &HealthService::Check)},
              {"Watch", HandlerOf(this, &HealthService::Watch)},
          }};
}

}  // namespace skein::server
