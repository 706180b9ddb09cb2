#pragma once
// What a load run is asked to do, and what each of its requests is: pure, no clock, no calls. The
// same seed gives the same sessions, whatever the server does.

#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "client/load_distribution.h"
#include "skein/v1/generation.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

struct LoadOptions {
  int64_t users = 8;  // closed loop, while rate is zero
  double rate = 0;    // open loop: sessions per second on average
  int64_t max_open = 10000;
  double duration = 30, warm_up = 0, grace = 30;  // seconds
  int64_t requests = 0;                           // 0: no limit but the duration
  int connections = 1;
  Distribution prompt = Distribution::Fixed(64), output = Distribution::Fixed(64),
               turns = Distribution::Fixed(1), think = Distribution::Fixed(0);
  bool keep = false;                         // the conversations
  double cancel = 0, hang_up = 0, slow = 0;  // shares of the requests
  double slow_rate = 10;                     // messages per second that a slow reader takes
  double deadline = 0;                       // 0: none
  uint64_t seed = 1;
  std::string text_file;
  v1::GenerateRequest request;  // model and sampling of every request

  bool open_loop() const { return rate > 0; }
};

// One Generate.
struct RequestPlan {
  int64_t prompt = 0, output = 0;  // tokens
  enum class End { kNormal, kCancel, kHangUp } end = End::kNormal;
  int64_t end_after = 0;  // tokens, for kCancel and kHangUp
  bool slow = false;
};

// A user's visit: one or more turns, in a conversation when there are several.
class SessionPlan {
 public:
  // Number `index` of the run.
  SessionPlan(const LoadOptions& options, int64_t index);

  int64_t turns() const { return turns_; }
  bool in_conversation() const { return in_conversation_; }
  // In order of the turns.
  RequestPlan NextRequest();
  double NextThinkSeconds() { return options_.think.Draw(&random_); }
  // `length` token ids of the text, from a random place on and around its end.
  void AddPrompt(const std::vector<int32_t>& text, int64_t length, v1::TokenIds* out);

 private:
  const LoadOptions& options_;
  std::mt19937_64 random_;
  int64_t turns_;
  bool in_conversation_;
};

// When sessions come in an open loop: a Poisson process. It does not wait for anybody: the times
// are the intended ones, from which latencies count.
class PoissonArrivals {
 public:
  PoissonArrivals(double rate, uint64_t seed) : gap_(rate), random_(seed) {}
  // Seconds from the start of the run, ascending.
  double Next() { return at_ += gap_(random_); }

 private:
  std::exponential_distribution<double> gap_;
  std::mt19937_64 random_;
  double at_ = 0;
};

// Text for prompts when no file is named.
extern const char kLoadText[];

}  // namespace skein::client
