#pragma once
// Scores many token sequences through Score, several calls at a time.

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "client/connection.h"
#include "grpcpp/support/status.h"

namespace skein::client {

struct ScoreJob {
  std::vector<int32_t> prompt;                      // at least one token
  std::vector<std::vector<int32_t>> continuations;  // none of them empty
};

struct ScoredContinuation {
  double log_likelihood = 0;
  bool greedy = false;
};

class Scorer {
 public:
  // `model` empty: the server's. `parallel`: calls at once. `progress(done, total)` is called on
  // the calling thread a few times a second.
  Scorer(Connection* connection, std::string model, int parallel,
         std::function<void(int64_t, int64_t)> progress)
      : connection_(*connection),
        model_(std::move(model)),
        parallel_(parallel),
        progress_(std::move(progress)) {}

  grpc::Status Tokenize(const std::string& text, std::vector<int32_t>* tokens);
  // One result a job, one entry a continuation. The first error ends it and says which job failed.
  // Calls that the server refuses because it is full are made again.
  grpc::Status Run(const std::vector<ScoreJob>& jobs,
                   std::vector<std::vector<ScoredContinuation>>* results);

 private:
  grpc::Status ScoreOne(const ScoreJob& job, std::vector<ScoredContinuation>* out);

  Connection& connection_;
  const std::string model_;
  const int parallel_;
  const std::function<void(int64_t, int64_t)> progress_;
};

}  // namespace skein::client
