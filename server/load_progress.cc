#include "server/load_progress.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/log.h"

namespace skein::server {
namespace {

constexpr absl::Duration kLogEvery = absl::Seconds(1);

const char* Name(engine::LoadProgress::Stage stage) {
  switch (stage) {
    case engine::LoadProgress::Stage::kReading:
      return "reading packed weights";
    case engine::LoadProgress::Stage::kWriting:
      return "writing packed weights";
    case engine::LoadProgress::Stage::kPacking:
      break;
  }
  return "packing weights";
}

int Percent(const engine::LoadProgress& p) { return static_cast<int>(p.fraction() * 100); }

// "3.2 GB"
std::string GB(int64_t bytes) {
  return absl::StrFormat("%.1f GB", static_cast<double>(bytes) * 1e-9);
}

}  // namespace

ProgressFunction LogProgress(std::string model) {
  return [model = std::move(model),
          next = absl::Now() + kLogEvery](const engine::LoadProgress& p) mutable {
    const absl::Time now = absl::Now();
    if (now < next) return;
    next = now + kLogEvery;
    LogLine(LogLevel::kInfo, Name(p.stage))
        .With("model", model)
        .With("percent", Percent(p))
        .With("done", GB(p.done))
        .With("total", GB(p.total));
  };
}

ProgressFunction DrawProgress() {
  return [last = std::string()](const engine::LoadProgress& p) mutable {
    constexpr int kWidth = 25;
    const int percent = Percent(p), filled = percent * kWidth / 100;
    std::string line;
    if (p.done < p.total) {
      line = absl::StrFormat("%s [%s%s] %3d %%, %s of %s", Name(p.stage), std::string(filled, '#'),
                             std::string(kWidth - filled, '.'), percent, GB(p.done), GB(p.total));
    }
    if (line == last) return;
    std::fprintf(stderr, "\r%s\033[K", line.c_str());
    last = std::move(line);
  };
}

}  // namespace skein::server
