// Prompt states are computed by requests of the server's own.

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "engine/base/check.h"
#include "engine/engine.h"

namespace skein::engine {
namespace {

constexpr absl::Duration kAskAgain = absl::Milliseconds(50);

// Shared by the caller and the output shard.
class StateSink final : public ResponseSink {
 public:
  void OnQueued(int64_t) override {}
  void OnStarted(const StartedEvent&) override {}
  void OnProgress(const ProgressEvent&) override {}
  void OnOutput(std::vector<TokenEvent>, std::string) override {}
  void OnFinished(const FinishedEvent& event) override {
    state_ = event.state;
    if (event.reason != FinishReason::kLength) status_ = absl::CancelledError("cancelled");
    ended_.Notify();
  }
  void OnError(const absl::Status& status) override {
    status_ = status;
    ended_.Notify();
  }
  bool Writable() const override { return true; }

  bool Ended(absl::Duration patience) { return ended_.WaitForNotificationWithTimeout(patience); }
  // Once it has ended.
  absl::StatusOr<std::shared_ptr<const StateSnapshot>> state() const {
    if (!status_.ok()) return status_;
    return state_;
  }

 private:
  absl::Status status_;
  std::shared_ptr<const StateSnapshot> state_;
  absl::Notification ended_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const PromptState>> Engine::Compute(
    const PromptState& prompt, const std::function<bool()>& wanted) {
  // Ids of clients have no control characters.
  static std::atomic<uint64_t> computed{0};
  GenerateRequest request;
  request.request_id = absl::StrCat("\x1fprompt state ", ++computed);
  request.input = prompt.tokens;
  request.stopping.max_tokens = 0;
  request.commit = CommitMode::kNever;
  request.keep_state = true;
  const std::string id = request.request_id;
  const auto sink = std::make_shared<StateSink>();
  SKEIN_RETURN_IF_ERROR(Submit(std::move(request), sink));
  while (!sink->Ended(kAskAgain)) {
    if (!wanted()) Cancel(id, /*by_client=*/true);
  }
  auto out = std::make_shared<PromptState>(prompt);
  out->model = tag();
  SKEIN_ASSIGN_OR_RETURN(out->snapshot, sink->state());
  return out;
}

}  // namespace skein::engine
