#pragma once
// The server under load that `skein load` makes: more than it can serve, streams that nobody reads,
// long prompts beside short answers. Times between tokens are those that clients see.

#include <sys/resource.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include "bench/serving_client.h"
#include "bench/serving_daemon.h"

namespace skein::bench {

// One run of `skein load`, as a process of its own.
class LoadProcess {
 public:
  LoadProcess(const std::string& address, const std::string& flags) {
    const std::string program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../bin/skein";
    pipe_ =
        popen(absl::StrCat(program, " load --json --connections 4 --server ", address, " ", flags)
                  .c_str(),
              "r");
    SKEIN_CHECK(pipe_ != nullptr);
  }
  LoadProcess(const LoadProcess&) = delete;
  LoadProcess& operator=(const LoadProcess&) = delete;
  ~LoadProcess() {
    if (pipe_ != nullptr) pclose(pipe_);
  }

  // Its report. A run in which every request was refused is one, too.
  Json Wait() {
    std::string out;
    std::array<char, 4096> piece;
    while (const size_t n = std::fread(piece.data(), 1, piece.size(), pipe_))
      out.append(piece.data(), n);
    pclose(std::exchange(pipe_, nullptr));
    Json report = Json::parse(out, nullptr, /*allow_exceptions=*/false);
    if (report.is_object()) return report;
    std::fprintf(stderr, "serving_bench: no report from skein load (build the target skein)\n");
    std::exit(1);
  }

 private:
  FILE* pipe_;
};

// Memory of this process while it lives, ten times a second.
class MemoryWatch {
 public:
  MemoryWatch() : start_(ResidentBytes()), thread_([this] { Run(); }) {}
  ~MemoryWatch() {
    stop_ = true;
    thread_.join();
  }
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;

  double start_mib() const { return static_cast<double>(start_) / (1 << 20); }
  double most_mib() const { return static_cast<double>(most_) / (1 << 20); }

 private:
  void Run() {
    for (; !stop_; absl::SleepFor(absl::Milliseconds(100)))
      most_ = std::max<int64_t>(most_, ResidentBytes());
  }

  const int64_t start_;
  std::atomic<int64_t> most_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Of the clients that have ended.
inline double ClientCpuSeconds() {
  rusage usage{};
  SKEIN_CHECK(getrusage(RUSAGE_CHILDREN, &usage) == 0);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

class ServingLoad {
 public:
  ServingLoad(const ServingOptions& options, std::string model, ClientProcess* client)
      : o_(options), model_(std::move(model)), client_(*client) {}

  absl::Status Start() {
    server::ServerConfig config = BenchConfig(o_);
    config.engine.slots = o_.slots;
    config.limits.queued = std::max(kDead, o_.slots);
    config.limits.outbox_tokens = 64;
    config.limits.outbox_age_seconds = 600;  // the dead readers stay
    target_ = config.engine.target_inter_token_seconds;
    SKEIN_ASSIGN_OR_RETURN(daemon_, StartDaemon(std::move(config), model_));
    return absl::OkStatus();
  }

  Json Run() {
    std::printf("%s, %s, %d slots, load average %.1f\n", model_.c_str(),
                daemon_->device_name().c_str(), o_.slots, LoadAverage());
    Load(absl::StrCat("-u ", o_.slots, " -d 2"));  // threads, step-time model
    Json json;
    if (o_.Has("overload")) json["overload"] = Overload();
    if (o_.Has("dead")) json["dead_readers"] = DeadReaders();
    if (o_.Has("mixed")) json["mixed"] = Mixed();
    return json;
  }

 private:
  static constexpr int kAnswer = 32;  // tokens
  static constexpr int kDead = 64;

  Json Load(const std::string& flags) {
    const double cpu = ClientCpuSeconds();
    Json report = LoadProcess(daemon_->address(), flags).Wait();
    report["client_cpu_seconds"] = ClientCpuSeconds() - cpu;
    return report;
  }
  std::string Phase() const {
    return absl::StrFormat(" --warm-up 2 -d %g --prompt 32 --output %d", o_.seconds, kAnswer);
  }
  static double P99(const Json& report, const char* what) {
    return report["latency_seconds"][what]["p99"].get<double>() * 1e3;
  }
  static void Print(const char* name, const Json& r) {
    std::printf(
        "  %-22s %8.1f tokens/s, between tokens p50 %7.2f p99 %7.2f ms, %lld ok, %lld refused,"
        " client %.1f s of processor time\n",
        name, r["tokens"]["output_per_second"].get<double>(),
        r["latency_seconds"]["between_tokens"]["p50"].get<double>() * 1e3, P99(r, "between_tokens"),
        r["requests"]["ok"].get<long long>(), r["requests"]["failed"].get<long long>(),
        r["client_cpu_seconds"].get<double>());
  }
  static double Ratio(const Json& now, const Json& before) {
    return P99(now, "between_tokens") / P99(before, "between_tokens");
  }

  Json Overload() {
    std::printf(" overload: requests of 32 tokens, answers of %d\n", kAnswer);
    const Json closed = Load(absl::StrCat("-u ", o_.slots, Phase()));
    const double capacity = closed["tokens"]["output_per_second"].get<double>() / kAnswer;
    const Json calm = Load(absl::StrFormat("--rate %g%s", 0.9 * capacity, Phase()));
    Json storm;
    double before = 0, most = 0;
    {
      const MemoryWatch memory;
      storm = Load(absl::StrFormat("--rate %g%s", 10 * capacity, Phase()));
      before = memory.start_mib();
      most = memory.most_mib();
    }
    const Json idle = RefusalsOfAnIdleServer(9 * capacity);
    Print("capacity", closed);
    Print("at 0.9 of it", calm);
    Print("at 10 times", storm);
    std::printf("  p99 between tokens %.2f of that at 0.9 (target 1.3); capacity %.1f requests/s\n",
                Ratio(storm, calm), capacity);
    std::printf(
        "  refusals: p50 %.2f p99 %.2f ms; of an idle server %.2f and %.2f ms\n",
        storm["latency_seconds"]["refusal"]["p50"].get<double>() * 1e3, P99(storm, "refusal"),
        idle["latency_seconds"]["refusal"]["p50"].get<double>() * 1e3, P99(idle, "refusal"));
    std::printf("  memory: %.1f MiB before, at most %.1f MiB (%+.1f)\n", before, most,
                most - before);
    return {{"capacity_requests_per_second", capacity},
            {"capacity", closed},
            {"at_0.9", calm},
            {"at_10", storm},
            {"idle_refusals", idle},
            {"between_tokens_p99_ratio", Ratio(storm, calm)},
            {"memory_before_mib", before},
            {"memory_most_mib", most}};
  }

  // A drained server refuses as a full one does, before it looks at the request.
  Json RefusalsOfAnIdleServer(double rate) {
    const std::string server = absl::StrCat(" --server ", daemon_->address(), " > /dev/null");
    Control("drain", server);
    Json report = Load(absl::StrFormat("--rate %g -d %g", rate, std::min(3.0, o_.seconds)));
    Control("undrain", server);
    return report;
  }
  static void Control(const char* what, const std::string& server) {
    const std::string program =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "../bin/skein";
    SKEIN_CHECK(std::system(absl::StrCat(program, " server ", what, server).c_str()) == 0);
  }

  Json DeadReaders() {
    std::printf(" dead readers: %d streams that nobody reads beside %d users\n", kDead, o_.slots);
    const std::string flags = absl::StrCat("-u ", o_.slots, Phase());
    const Json without = Load(flags);
    client_.Call({{"do", "hold"}, {"address", daemon_->address()}, {"streams", kDead}});
    WaitUntilStuck();
    Json with;
    double before = 0, most = 0;
    {
      const MemoryWatch memory;
      with = Load(flags);
      before = memory.start_mib();
      most = memory.most_mib();
    }
    const int held = Running();
    client_.Call({{"do", "let_go"}});
    while (Running() > 0) absl::SleepFor(absl::Milliseconds(20));
    Print("without", without);
    Print("with", with);
    const double ratio = with["tokens"]["output_per_second"].get<double>() /
                         without["tokens"]["output_per_second"].get<double>();
    std::printf(
        "  tokens/s %.3f of those without, p99 between tokens %.3f of that without; %d of %d still"
        " held; memory %.1f MiB, at most %.1f MiB (%+.1f)\n",
        ratio, Ratio(with, without), held, kDead, before, most, most - before);
    return {{"without", without},
            {"with", with},
            {"tokens_per_second_ratio", ratio},
            {"between_tokens_p99_ratio", Ratio(with, without)},
            {"held", held},
            {"memory_before_mib", before},
            {"memory_most_mib", most}};
  }
  int Running() const {
    const engine::EngineGauges gauges = daemon_->engine().gauges();
    return gauges.running + gauges.waiting;
  }
  // Until all streams hold as much as they can: a row that cannot go on takes no time.
  static void WaitUntilStuck() {
    for (double busy = 1; busy > 0.1;) {
      absl::SleepFor(absl::Milliseconds(500));
      const double before = ProcessCpuSeconds();
      absl::SleepFor(absl::Milliseconds(500));
      busy = (ProcessCpuSeconds() - before) / 0.5;
    }
  }

  Json Mixed() {
    constexpr int kPrompt = 2048;
    const int users = o_.slots / 2;
    std::printf(" mixed: prompts of %d tokens, one after the other, beside %d users\n", kPrompt,
                users);
    const std::string flags =
        absl::StrFormat("-u %d --warm-up 2 -d %g --prompt 16 --output 200", users, o_.seconds);
    const Json without = Load(flags);
    LoadProcess prompts(
        daemon_->address(),
        absl::StrFormat("-u 1 --warm-up 2 -d %g --prompt %d --output 1", o_.seconds + 1, kPrompt));
    const Json with = Load(flags);
    const Json prefill = prompts.Wait();
    Print("without long prompts", without);
    Print("with", with);
    const double prefilled = prefill["requests"]["ok"].get<double>() * kPrompt /
                             prefill["measured_seconds"].get<double>();
    std::printf(
        "  p99 between tokens %.1f ms (the scheduler's target %.0f ms); prefill %.0f tokens/s"
        " beside\n",
        P99(with, "between_tokens"), target_ * 1e3, prefilled);
    return {{"without", without},
            {"with", with},
            {"prefill", prefill},
            {"prefill_tokens_per_second", prefilled},
            {"target_seconds", target_}};
  }

  const ServingOptions o_;
  const std::string model_;
  ClientProcess& client_;
  double target_ = 0;
  std::unique_ptr<server::Daemon> daemon_;
};

}  // namespace skein::bench
