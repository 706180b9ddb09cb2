// Prompt states are computed by requests of the server's own.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/engine.h"

namespace skein::engine {
namespace {

constexpr absl::Duration kAskAgain = absl::Milliseconds(50);

// Shared by the caller and the output shard.
class StateSink final : public ResponseSink {
 public:
  using Result = absl::StatusOr<std::shared_ptr<const StateSnapshot>>;

  void OnQueued(int64_t) override {}
  void OnStarted(const StartedEvent&) override {}
  void OnProgress(const ProgressEvent&) override {}
  void OnOutput(std::vector<TokenEvent>, std::string) override {}
  void OnFinished(const FinishedEvent& event) override {
    if (event.reason == FinishReason::kLength) return End(event.state);
    End(absl::CancelledError("the prompt state was not computed: it was cancelled, or drained"));
  }
  void OnError(const absl::Status& status) override { End(status); }
  bool Writable() const override { return true; }

  // False: it has not ended within this time.
  bool Ended(absl::Duration patience) {
    std::unique_lock<std::mutex> lock(mu_);
    return ended_.wait_for(lock, absl::ToChronoMilliseconds(patience),
                           [this] { return result_.has_value(); });
  }
  // Once it has ended.
  Result result() {
    std::lock_guard<std::mutex> lock(mu_);
    return *result_;
  }

 private:
  void End(Result result) {
    std::lock_guard<std::mutex> lock(mu_);
    result_ = std::move(result);
    ended_.notify_one();
  }

  std::mutex mu_;
  std::condition_variable ended_;
  std::optional<Result> result_ ABSL_GUARDED_BY(mu_);
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
  SKEIN_ASSIGN_OR_RETURN(out->snapshot, sink->result());
  return out;
}

}  // namespace skein::engine
