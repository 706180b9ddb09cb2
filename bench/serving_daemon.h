#pragma once
// The daemon of serving_bench: in this process, with a random model or one from a file.

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/status.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/log.h"
#include "tests/engine/random_model.h"

namespace skein::bench {

// That of the demo model which `make serve` trains.
inline constexpr engine::RandomShape kDemoShape{3, 128, 64, 257, 512, 32, 32, 32, 32, 1};

struct ServingOptions {
  std::vector<std::string> models = {"0.1B", "demo"};
  std::vector<std::string> parts = {"cost", "turns", "overload", "dead", "mixed"};
  int streams = 64, tokens = 0, rounds = 5;  // of the part "cost"
  int slots = 16;                            // of the parts under load
  double seconds = 8;                        // of each of their phases
  int threads = 0;
  std::string json;

  bool Has(absl::string_view part) const {
    return std::find(parts.begin(), parts.end(), part) != parts.end();
  }
};

inline server::ServerConfig BenchConfig(const ServingOptions& o) {
  server::ServerConfig config;
  config.listen.address = "127.0.0.1:0";
  config.listen.metrics = "";
  config.cpu.threads = o.threads;
  config.log.level = "error";
  return config;
}

// `model`: "0.1B" or "demo", a random one of that shape, or a file.
inline absl::StatusOr<std::unique_ptr<server::Daemon>> StartDaemon(server::ServerConfig config,
                                                                   const std::string& model) {
  server::InitLog(config.log);
  std::string made;
  if (model == "0.1B" || model == "demo") {
    const char* folder = std::getenv("TMPDIR");
    made = absl::StrCat(folder != nullptr ? folder : "/tmp", "/serving_bench-", getpid(),
                        ".safetensors");
    SKEIN_RETURN_IF_ERROR(
        engine::RandomModel(model == "demo" ? kDemoShape : engine::kShape01B)
            .Write(made, {{engine::kMetaTokenizer, "bytes"}, {engine::kMetaChatTemplate, "none"}}));
    config.model.weights = "bf16";
  }
  config.model.path = made.empty() ? model : made;
  absl::StatusOr<std::unique_ptr<server::Daemon>> daemon =
      server::Daemon::Start({config, ""}, nullptr, nullptr);
  if (!made.empty()) unlink(made.c_str());
  return daemon;
}

// Processor time of this process's threads by their name, in seconds.
inline std::map<std::string, double> ThreadTimes() {
  std::map<std::string, double> times;
  DIR* tasks = opendir("/proc/self/task");
  SKEIN_CHECK(tasks != nullptr);
  for (const dirent* task = readdir(tasks); task != nullptr; task = readdir(tasks)) {
    const std::string folder = absl::StrCat("/proc/self/task/", task->d_name);
    std::string name;
    int64_t ns = 0;
    std::getline(std::ifstream(folder + "/comm"), name);
    std::ifstream(folder + "/schedstat") >> ns;
    if (!name.empty()) times[name] += 1e-9 * static_cast<double>(ns);
  }
  closedir(tasks);
  return times;
}

// Memory of this process, so of the daemon, in bytes.
inline int64_t ResidentBytes() {
  int64_t all = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

inline double LoadAverage() {
  double load[1] = {0};
  SKEIN_CHECK(getloadavg(load, 1) == 1);
  return load[0];
}

inline double Median(std::vector<double> values) {
  SKEIN_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace skein::bench
