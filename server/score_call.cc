#include "server/score_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"

namespace skein::server {
namespace {

constexpr size_t kAtOnce = 8;  // continuations of one call in the engine
// Tokens of one message: a long continuation's answer comes in pieces that any client takes.
constexpr size_t kAnswerTokens = 2048;

std::string PartId(const std::string& id, size_t part) { return absl::StrCat(id, "#score", part); }
std::string PromptId(const std::string& id) { return absl::StrCat(id, "#prompt"); }

absl::Status SlowReader() {
  return base::MakeStatus(absl::StatusCode::kResourceExhausted, "SLOW_READER",
                          "the client did not read its stream for too long");
}

}  // namespace

// Shared by the engine's output shard; keeps the call alive.
class ScoreCall::Part final : public engine::ScoreSink {
 public:
  Part(std::shared_ptr<ScoreCall> call, size_t index) : call_(std::move(call)), index_(index) {}
  void OnScores(const engine::ScoreEvent& event) override { call_->OnScores(index_, event); }
  void OnFinished(const engine::Usage&) override { call_->OnPartDone(index_); }
  void OnError(const absl::Status& status) override { call_->OnPartError(status); }

 private:
  const std::shared_ptr<ScoreCall> call_;
  const size_t index_;
};

// The same for the prompt.
class ScoreCall::Prompt final : public engine::ScoreSink {
 public:
  explicit Prompt(std::shared_ptr<ScoreCall> call) : call_(std::move(call)) {}
  void OnScores(const engine::ScoreEvent&) override {}
  void OnPrompt(std::shared_ptr<const engine::ScorePrompt> prompt) override {
    prompt_ = std::move(prompt);
  }
  void OnFinished(const engine::Usage&) override { call_->OnPrompt(std::move(prompt_)); }
  void OnError(const absl::Status& status) override { call_->OnPartError(status); }

 private:
  const std::shared_ptr<ScoreCall> call_;
  std::shared_ptr<const engine::ScorePrompt> prompt_;
};

// The engine's ids are ours alone, so that they clash with no other request.
ScoreCall::ScoreCall(Call call, ModelUse model, ScoreCommand command)
    : StreamCall(std::move(call)),
      model_(std::move(model)),
      request_id_(NewRequestId()),
      command_(std::move(command)),
      max_unsent_(model_.config().limits.outbox_tokens),
      patience_(absl::Seconds(model_.config().limits.outbox_age_seconds)),
      results_(command_.continuations.size()) {}

absl::Status ScoreCall::Start() {
  const engine::ScoreRequest& prototype = command_.prototype;
  {
    absl::MutexLock lock(&mu_);
    more_to_come_ = model_.engine().MoreToCome();
  }
  const bool shared = command_.continuations.size() > 1 &&
                      (prototype.prompt.size() > 1 || !prototype.conversation_id.empty());
  if (shared) {
    absl::MutexLock lock(&mu_);
    leave_ = model_.engine().LeaveToKeepPrompt();
    if (leave_ != nullptr) return SubmitPrompt();
  }
  return SubmitMore();
}

absl::Status ScoreCall::SubmitPrompt() {
  engine::ScoreRequest request = command_.prototype;
  request.tenant = call().principal().tenant;
  request.quotas = call().principal().quotas;
  request.request_id = PromptId(request_id_);
  request.deadline = call().deadline();
  request.keep_prompt = true;
  auto self = std::static_pointer_cast<ScoreCall>(shared_from_this());
  return model_.engine().Submit(std::move(request), std::make_shared<Prompt>(std::move(self)));
}

void ScoreCall::OnPrompt(std::shared_ptr<const engine::ScorePrompt> prompt) {
  {
    absl::MutexLock lock(&mu_);
    if (!stopped_) prompt_ = std::move(prompt);
  }
  if (absl::Status status = SubmitMore(); !status.ok()) OnPartError(status);
}

engine::ScoreRequest ScoreCall::PartRequest(size_t part) const {
  engine::ScoreRequest request;
  if (prompt_ == nullptr) {
    request = command_.prototype;
  } else {
    request.after = prompt_;
  }
  request.tenant = call().principal().tenant;
  request.quotas = call().principal().quotas;
  request.request_id = PartId(request_id_, part);
  request.continuation = command_.continuations[part];
  request.deadline = call().deadline();
  // What was accepted is not refused half way: it always has one place.
  request.accepted = part > 0 || prompt_ != nullptr;
  request.exempt = running_ == 0 && request.accepted;
  return request;
}

absl::Status ScoreCall::SubmitMore() {
  // Under the lock, so that parts are taken in order; Submit never waits for a sink.
  absl::MutexLock lock(&mu_);
  CheckPace();
  while (!stopped_ && running_ < kAtOnce && unsent_ < max_unsent_ &&
         submitted_ < command_.continuations.size()) {
    auto self = std::static_pointer_cast<ScoreCall>(shared_from_this());
    absl::Status status = model_.engine().Submit(
        PartRequest(submitted_), std::make_shared<Part>(std::move(self), submitted_));
    if (!status.ok()) {
      // The queue is full: the next part that ends tries again.
      return running_ > 0 && absl::IsResourceExhausted(status) ? absl::OkStatus() : status;
    }
    ++submitted_;
    ++running_;
  }
  if (submitted_ == command_.continuations.size()) {
    prompt_ = nullptr;
    leave_ = nullptr;
    more_to_come_ = nullptr;
  }
  return absl::OkStatus();
}

// What it depends on changes before SubmitMore alone: that submits nothing while the reader is
// behind.
void ScoreCall::CheckPace() {
  const bool slow = !stopped_ && unsent_ >= max_unsent_ && !in_outbox_.empty() &&
                    submitted_ < command_.continuations.size();
  if (slow == (slow_ != nullptr)) return;
  if (!slow) {
    slow_ = nullptr;
    return;
  }
  // The alarm is this call's, so it does not keep it; one that rings while it is taken back is
  // known by its number.
  slow_ = std::make_unique<grpc::Alarm>();
  slow_->Set(absl::ToChronoTime(absl::Now() + patience_),
             [weak = weak_from_this(), time = ++times_slow_](bool rang) {
               const auto self = std::static_pointer_cast<ScoreCall>(weak.lock());
               if (rang && self != nullptr) self->OnSlow(time);
             });
}

void ScoreCall::OnSlow(int64_t time) {
  {
    absl::MutexLock lock(&mu_);
    if (slow_ == nullptr || time != times_slow_) return;
  }
  Action action = outbox_.Drop(SlowReader());
  Stop();
  Apply(std::move(action));
}

void ScoreCall::OnScores(size_t part, const engine::ScoreEvent& event) {
  absl::MutexLock lock(&mu_);
  Result& r = results_[part];
  r.logprobs.insert(r.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
  r.greedy.insert(r.greedy.end(), event.greedy.begin(), event.greedy.end());
}

void ScoreCall::PushAnswer(size_t part) {
  const std::vector<int32_t>& tokens = command_.continuations[part];
  const Result& r = results_[part];
  SKEIN_CHECK(r.logprobs.size() == tokens.size());
  double total = 0;
  bool all_greedy = true;
  v1::ScoreResponse response;
  for (size_t i = 0; i < tokens.size(); ++i) {
    v1::ScoredToken* token = response.add_tokens();
    const absl::string_view bytes = model_.tokenizer().Bytes(tokens[i]);
    token->set_id(tokens[i]);
    token->set_bytes(bytes.data(), bytes.size());
    token->set_logprob(r.logprobs[i]);
    token->set_is_greedy(r.greedy[i] != 0);
    total += r.logprobs[i];
    all_greedy = all_greedy && r.greedy[i] != 0;
    const bool last = i + 1 == tokens.size();
    if (!last && response.tokens_size() < static_cast<int>(kAnswerTokens)) continue;
    response.set_index(static_cast<int32_t>(part));
    if (last) {
      response.set_total_logprob(total);
      response.set_is_greedy(all_greedy);
    }
    in_outbox_.push_back(response.tokens_size());
    Apply(outbox_.Push(std::exchange(response, {})));
  }
}

void ScoreCall::OnPartDone(size_t part) {
  bool all_sent = false;
  {
    absl::MutexLock lock(&mu_);
    results_[part].done = true;
    --running_;
    unsent_ += TokensOf(part);
    // Pushed under the lock: two shards may end parts at once, and the order must hold.
    while (!stopped_ && sent_ < results_.size() && results_[sent_].done) {
      PushAnswer(sent_);
      results_[sent_] = Result();
      ++sent_;
    }
    all_sent = sent_ == results_.size();
  }
  if (all_sent) {
    Apply(outbox_.End(absl::OkStatus()));
    return;
  }
  if (absl::Status status = SubmitMore(); !status.ok()) OnPartError(status);
}

ScoreCall::Action ScoreCall::Written(bool ok) {
  Action action = outbox_.WriteDone(ok);
  if (!ok) return action;
  {
    absl::MutexLock lock(&mu_);
    unsent_ -= in_outbox_.front();
    in_outbox_.pop_front();
    slow_ = nullptr;  // it reads: its time begins anew
  }
  if (absl::Status status = SubmitMore(); !status.ok()) OnPartError(status);
  return action;
}

void ScoreCall::OnPartError(const absl::Status& status) {
  Stop();
  Apply(outbox_.End(status));
}

ScoreCall::Action ScoreCall::Gone(const absl::Status& status) {
  Stop();
  return outbox_.Drop(status);
}

void ScoreCall::Stop() {
  size_t submitted = 0;
  {
    absl::MutexLock lock(&mu_);
    if (stopped_) return;
    stopped_ = true;
    submitted = submitted_;
    prompt_ = nullptr;
    leave_ = nullptr;
    more_to_come_ = nullptr;
    slow_ = nullptr;
    results_.assign(results_.size(), {});
  }
  model_.engine().Cancel(PromptId(request_id_), /*by_client=*/false);
  for (size_t part = 0; part < submitted; ++part) {
    model_.engine().Cancel(PartId(request_id_, part), /*by_client=*/false);
  }
}

void ScoreCall::OnEnd(const absl::Status& status) {
  const LogLevel level = status.ok() ? LogLevel::kInfo : Call::LevelOf(status);
  LogLine line(level, "request");
  line.With("id", command_.request_id);
  call().Log(line, status);
  line.With("continuations", static_cast<int64_t>(command_.continuations.size()));
}

}  // namespace skein::server
