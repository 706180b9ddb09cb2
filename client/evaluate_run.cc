#include "client/evaluate_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"

namespace skein::client {
namespace {

constexpr std::chrono::milliseconds kRedraw{200};
constexpr std::chrono::milliseconds kFirstDelay{50};
constexpr int kAttempts = 10;  // the last delay is 25 s

}  // namespace

grpc::Status Scorer::Tokenize(const std::string& text, std::vector<int32_t>* tokens) {
  v1::TokenizeRequest request;
  request.set_model(model_);
  request.set_text(text);
  v1::TokenizeResponse response;
  const grpc::Status status = connection_.Call(connection_.generation(),
                                               &v1::Generation::Stub::Tokenize, request, &response);
  tokens->assign(response.ids().begin(), response.ids().end());
  return status;
}

grpc::Status Scorer::ScoreOne(const ScoreJob& job, std::vector<ScoredContinuation>* out) {
  v1::ScoreRequest request;
  request.set_model(model_);
  request.mutable_token_ids()->mutable_ids()->Add(job.prompt.begin(), job.prompt.end());
  for (const std::vector<int32_t>& tokens : job.continuations)
    request.add_continuations()->mutable_token_ids()->mutable_ids()->Add(tokens.begin(),
                                                                         tokens.end());
  grpc::Status status;
  std::chrono::milliseconds delay = kFirstDelay;
  for (int attempt = 0; attempt < kAttempts; ++attempt, delay *= 2) {
    if (attempt > 0) std::this_thread::sleep_for(delay);
    out->assign(job.continuations.size(), {});
    grpc::ClientContext call;
    const auto reader = connection_.generation().Score(&call, request);
    v1::ScoreResponse response;
    while (reader->Read(&response)) {
      if (!response.has_total_logprob()) continue;
      out->at(static_cast<size_t>(response.index())) = {response.total_logprob(),
                                                        response.is_greedy()};
    }
    status = reader->Finish();
    if (status.error_code() != grpc::StatusCode::RESOURCE_EXHAUSTED) break;
  }
  return status;
}

grpc::Status Scorer::Run(const std::vector<ScoreJob>& jobs,
                         std::vector<std::vector<ScoredContinuation>>* results) {
  results->assign(jobs.size(), {});
  std::mutex mu;
  std::condition_variable ended;
  size_t next = 0, done = 0;
  int running = 0;
  grpc::Status failed;
  const auto work = [&] {
    std::unique_lock<std::mutex> lock(mu);
    while (failed.ok() && next < jobs.size()) {
      const size_t job = next++;
      lock.unlock();
      const grpc::Status status = ScoreOne(jobs[job], &(*results)[job]);
      lock.lock();
      ++done;
      if (!status.ok() && failed.ok()) {
        failed = grpc::Status(
            status.error_code(),
            absl::StrCat("piece ", job + 1, " of ", jobs.size(), ": ", status.error_message()),
            status.error_details());
      }
    }
    --running;
    ended.notify_all();
  };
  std::vector<std::thread> threads;
  running = static_cast<int>(std::min<size_t>(jobs.size(), static_cast<size_t>(parallel_)));
  for (int i = 0, n = running; i < n; ++i) threads.emplace_back(work);
  {
    std::unique_lock<std::mutex> lock(mu);
    while (!ended.wait_for(lock, kRedraw, [&] { return running == 0; })) {
      const int64_t so_far = static_cast<int64_t>(done);
      lock.unlock();
      progress_(so_far, static_cast<int64_t>(jobs.size()));
      lock.lock();
    }
  }
  for (std::thread& thread : threads) thread.join();
  return failed;
}

}  // namespace skein::client
