#include "server/load_meter.h"

namespace skein::server {

LoadMeter::Second& LoadMeter::Present() {
  const int64_t now = NowSecond();
  Second& present = seconds_[now % seconds_.size()];
  if (present.second != now) present = {now, 0, 0};
  return present;
}

void LoadMeter::OnStep(const engine::StepReport& report) {
  if (report.generated_tokens > 0) {
    absl::MutexLock lock(&mu_);
    Present().tokens += report.generated_tokens;
  }
  next_.OnStep(report);
}

void LoadMeter::OnRequestDone(const engine::RequestReport& report) {
  {
    absl::MutexLock lock(&mu_);
    ++Present().requests;
  }
  next_.OnRequestDone(report);
}

LoadMeter::Rates LoadMeter::rates() const {
  const int64_t now = NowSecond();
  Rates rates;
  absl::MutexLock lock(&mu_);
  for (const Second& s : seconds_) {
    if (s.second < now - kSeconds || s.second >= now) continue;
    rates.tokens += static_cast<double>(s.tokens) / kSeconds;
    rates.requests += static_cast<double>(s.requests) / kSeconds;
  }
  return rates;
}

}  // namespace skein::server
