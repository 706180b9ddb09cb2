#pragma once
// How much one engine gets done: tokens and requests a second over the last seconds. Stands between
// the engine and the metrics as its observer. Thread-safe.

#include <array>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "engine/engine.h"

namespace skein::server {

class LoadMeter final : public engine::EngineObserver {
 public:
  // `next` gets every report too and outlives the meter.
  explicit LoadMeter(engine::EngineObserver* next) : next_(*next) {}

  void OnStep(const engine::StepReport& report) override;
  void OnRequestDone(const engine::RequestReport& report) override;

  struct Rates {
    double tokens = 0, requests = 0;  // a second
  };
  Rates rates() const;

 private:
  static constexpr int64_t kSeconds = 10;
  struct Second {
    int64_t second = 0;  // since the epoch of the clock
    int64_t tokens = 0, requests = 0;
  };
  static int64_t NowSecond() { return absl::GetCurrentTimeNanos() / 1'000'000'000; }
  Second& Present() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  engine::EngineObserver& next_;
  mutable absl::Mutex mu_;
  // A ring; the second that runs is not counted yet.
  std::array<Second, kSeconds + 1> seconds_ ABSL_GUARDED_BY(mu_);
};

}  // namespace skein::server
