#pragma once
// One running Score: the prompt is one engine request, and each continuation is one that starts
// from the state after it; a few run at once, the answers leave in order. While a reader is behind
// by limits.outbox_tokens no more of them start; one that stays behind for limits.outbox_age ends
// the call, as it ends a Generate.

#include <deque>
#include <memory>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "engine/request.h"
#include "grpcpp/alarm.h"
#include "server/stream_call.h"

namespace skein::server {

class ScoreCall final : public StreamCall<v1::ScoreResponse> {
 public:
  ScoreCall(Call call, ModelUse model, ScoreCommand command);
  // Submits the prompt, or the first continuations. An error means that nothing is running: refuse
  // the call.
  absl::Status Start();

 private:
  class Part;
  class Prompt;

  struct Result {
    std::vector<float> logprobs;
    std::vector<uint8_t> greedy;
    bool done = false;
  };

  Action Written(bool ok) override;
  Action Gone(const absl::Status& status) override;
  void OnEnd(const absl::Status& status) override;
  int64_t TokensOf(size_t part) const {
    return static_cast<int64_t>(command_.continuations[part].size());
  }
  // Submits while there is room; returns the refusal when nothing is running, so nobody would try
  // again.
  absl::Status SubmitMore();
  absl::Status SubmitPrompt();
  engine::ScoreRequest PartRequest(size_t part) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnPrompt(std::shared_ptr<const engine::ScorePrompt> prompt);
  void OnScores(size_t part, const engine::ScoreEvent& event);
  void OnPartDone(size_t part);
  void PushAnswer(size_t part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnPartError(const absl::Status& status);
  void CheckPace() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void OnSlow(int64_t time);
  void Stop();  // what still runs is cancelled, what is kept for more is let go

  const ModelUse model_;
  const std::string request_id_;
  const ScoreCommand command_;
  const int64_t max_unsent_;
  const absl::Duration patience_;
  Outbox<v1::ScoreResponse> outbox_;
  absl::Mutex mu_;
  std::vector<Result> results_ ABSL_GUARDED_BY(mu_);
  size_t submitted_ ABSL_GUARDED_BY(mu_) = 0;
  size_t running_ ABSL_GUARDED_BY(mu_) = 0;
  size_t sent_ ABSL_GUARDED_BY(mu_) = 0;  // given to the outbox
  // Tokens of each message there that the transport has not taken yet.
  std::deque<int64_t> in_outbox_ ABSL_GUARDED_BY(mu_);
  int64_t unsent_ ABSL_GUARDED_BY(mu_) = 0;  // tokens of those that are done and not written
  // While the reader is behind and more is to be submitted: rings when it has been for too long.
  std::unique_ptr<grpc::Alarm> slow_ ABSL_GUARDED_BY(mu_);
  int64_t times_slow_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  // Taken in for all continuations, until the last one has been submitted; null: each takes it in.
  std::shared_ptr<const engine::ScorePrompt> prompt_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const void> leave_ ABSL_GUARDED_BY(mu_);  // to keep it
  // Until the last one has been submitted: a drain lets this call go on.
  std::shared_ptr<const void> more_to_come_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
