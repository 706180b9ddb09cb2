#include "server/load_call.h"

#include <utility>

#include "engine/base/check.h"
#include "engine/base/status.h"
#include "server/convert_control.h"

namespace skein::server {

// Keeps the call alive as long as the load runs.
class LoadCall::Listener final : public LoadListener {
 public:
  explicit Listener(std::shared_ptr<LoadCall> call) : call_(std::move(call)) {}
  void OnProgress(double fraction) override { call_->OnProgress(fraction); }
  void OnLoaded(const absl::StatusOr<v1::Model>& model) override { call_->OnLoaded(model); }
  bool Wanted() const override { return !call_->gone_.load(); }

 private:
  const std::shared_ptr<LoadCall> call_;
};

absl::Status LoadCall::Start(const v1::LoadModelRequest& request, ModelManager* manager) {
  SKEIN_ASSIGN_OR_RETURN(ModelSource source, ToModelSource(request));
  auto self = std::static_pointer_cast<LoadCall>(shared_from_this());
  return manager->Load(std::move(source), request.replace(),
                       std::make_shared<Listener>(std::move(self)));
}

void LoadCall::OnProgress(double fraction) {
  const int percent = static_cast<int>(fraction * 100);
  if (percent == percent_) return;
  percent_ = percent;
  v1::LoadModelResponse response;
  response.mutable_progress()->set_fraction(fraction);
  Apply(outbox_.Push(std::move(response)));
}

void LoadCall::OnLoaded(const absl::StatusOr<v1::Model>& model) {
  if (model.ok()) {
    v1::LoadModelResponse response;
    *response.mutable_model() = *model;
    Apply(outbox_.Push(std::move(response)));
  }
  absl::Status status = model.status();
  if (absl::IsInvalidArgument(status) && base::Reason(status).empty()) {  // what is in the file
    status = base::InvalidField("path", status.message());
  }
  Apply(outbox_.End(std::move(status)));
}

LoadCall::Action LoadCall::Gone(const absl::Status& status) {
  gone_.store(true);
  return outbox_.Drop(status);
}

void LoadCall::OnEnd(const absl::Status& status) {
  LogLine line(Call::LevelOf(status), "rpc");
  call().Log(line, status);
  line.With("path", path_);
}

}  // namespace skein::server
