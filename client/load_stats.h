#pragma once
// What a load run has seen so far. Bounded memory: histograms and counters. Thread-safe.

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "client/load_histogram.h"
#include "grpcpp/support/status.h"
#include "skein/v1/generation.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

// How one request went, seen from here.
struct RequestOutcome {
  using Time = std::chrono::steady_clock::time_point;

  bool measured = false;    // intended to start after the warm-up
  bool slow = false;        // its reader was: latencies tell nothing about the server
  bool ended_here = false;  // cancelled or hung up on by us
  bool cut = false;         // ended because the run was over
  Time intended, started, ended;
  Time first_text{};           // epoch: there was none
  int64_t messages = 0;        // with text
  int64_t tokens = 0;          // that they brought
  int64_t tokens_in_time = 0;  // of these, within the measured time
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  v1::Usage usage;
  grpc::Status status;
  std::string error_reason;  // of ErrorInfo
};

class LoadStats {
 public:
  // A message with text, `gap` after the one before it.
  void Gap(LatencyHistogram::Duration gap) { between.Record(gap); }
  void Started() { open.fetch_add(1); }
  void Ended(const RequestOutcome& outcome);

  // Of requests that were measured. Open loop: first and whole count from the intended start.
  LatencyHistogram first, between, whole, lag, refused;
  std::atomic<int64_t> open{0}, started{0};
  std::atomic<int64_t> ok{0}, failed{0}, cut{0}, slow{0}, ended_here{0};
  std::atomic<int64_t> prompt_tokens{0}, output_tokens{0}, reused_tokens{0};
  // Output tokens that arrived within the measured time.
  std::atomic<int64_t> tokens_in_time{0};

  // "OK", "RESOURCE_EXHAUSTED QUEUE_FULL" -> requests.
  std::map<std::string, int64_t> codes() const;
  // "length", "stop", ... -> requests.
  std::map<std::string, int64_t> ends() const;

 private:
  mutable std::mutex mu_;
  std::map<std::string, int64_t> codes_, ends_;  // guarded by mu_; bounded: names of the API
};

}  // namespace skein::client
