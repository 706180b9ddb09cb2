#pragma once
// One running Generate: receives the engine's events, turns them into responses and sends them.

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "engine/request.h"
#include "server/stream_call.h"

namespace skein::server {

class GenerateCall final : public StreamCall<v1::GenerateResponse>, public engine::ResponseSink {
 public:
  GenerateCall(Call call, std::string request_id, OutputChoice output);

  void OnQueued(int64_t position) override;
  void OnStarted(const engine::StartedEvent& event) override;
  void OnProgress(const engine::ProgressEvent& event) override;
  void OnOutput(std::vector<engine::TokenEvent> tokens, std::string text) override;
  void OnFinished(const engine::FinishedEvent& event) override;
  void OnError(const absl::Status& status) override;
  bool Writable() const override { return HasRoom(); }

 private:
  void OnGone() override;
  void OnEnd(const absl::Status& status) override;

  const std::string request_id_;
  const OutputChoice output_;
  absl::Mutex mu_;
  std::optional<engine::FinishedEvent> finished_ ABSL_GUARDED_BY(mu_);  // for the log line
};

}  // namespace skein::server
