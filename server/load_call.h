#pragma once
// One running LoadModel: passes progress on and ends with the model that is live.

#include <atomic>
#include <memory>
#include <string>

#include "server/model_manager.h"
#include "server/outbox.h"
#include "server/stream_call.h"
#include "skein/v1/control.pb.h"

namespace skein::server {

class LoadCall final : public StreamCall<v1::LoadModelResponse> {
 public:
  LoadCall(Call call, std::string path) : StreamCall(std::move(call)), path_(std::move(path)) {}

  // After Hold. An error refuses the call.
  absl::Status Start(const v1::LoadModelRequest& request, ModelManager* manager);

 private:
  class Listener;

  void OnProgress(double fraction);
  void OnLoaded(const absl::StatusOr<v1::Model>& model);
  Action Written(bool ok) override { return outbox_.WriteDone(ok); }
  Action Gone(const absl::Status& status) override;
  void OnEnd(const absl::Status& status) override;

  const std::string path_;
  Outbox<v1::LoadModelResponse> outbox_;
  std::atomic<bool> gone_{false};
  int percent_ = -1;  // told last; loading thread only
};

}  // namespace skein::server
