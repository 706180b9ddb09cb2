// skeind: flags and config, start, signals, drain.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/config.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/log.h"
#include "server/systemd_notify.h"
#include "server/version.h"

extern char** environ;

namespace skein::server {
namespace {

constexpr char kDefaultConfig[] = "config.yaml";
// After the drain: time for what was computed to reach slow readers.
constexpr absl::Duration kSlowReaders = absl::Seconds(3);

struct Flags {
  std::string config;
  std::string model;
  std::vector<std::string> set;
  bool check = false;
  bool print = false;
};

// One byte a event: a signal, or the end of a drain.
constexpr char kSignal = 's';
constexpr char kDrained = 'd';
int event_pipe[2];
volatile sig_atomic_t serving = 0;

void SendEvent(char event) {
  // A full pipe already holds more events than anybody needs.
  [[maybe_unused]] const ssize_t n = write(event_pipe[1], &event, 1);
}

void OnSignal(int number) {
  if (serving == 0) _exit(128 + number);  // still loading: there is nothing to drain
  SendEvent(kSignal);
}

void HandleSignals() {
  SKEIN_CHECK(pipe2(event_pipe, O_CLOEXEC | O_NONBLOCK) == 0);
  struct sigaction action {};
  action.sa_handler = OnSignal;
  action.sa_flags = SA_RESTART;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

// 0 after a second without an event.
char WaitForEvent() {
  pollfd wait{event_pipe[0], POLLIN, 0};
  char event = 0;
  if (poll(&wait, 1, 1000) <= 0 || read(event_pipe[0], &event, 1) != 1) return 0;
  return event;
}

// Serves until a signal has drained the daemon. The first signal gives running requests
// `drain_seconds`, the second none.
void ServeUntilDrained(Daemon& daemon, double drain_seconds) {
  std::vector<std::thread> drains;
  while (true) {
    const char event = WaitForEvent();
    if (event == 0) daemon.CheckHealth();
    if (event == kDrained) break;
    if (event != kSignal || drains.size() >= 2) continue;
    const double seconds = drains.empty() ? drain_seconds : 0;
    LogLine(LogLevel::kInfo, drains.empty() ? "draining" : "stopping at once")
        .With("seconds", seconds);
    NotifySystemd("STOPPING=1");
    drains.emplace_back([&daemon, deadline = absl::Now() + absl::Seconds(seconds)] {
      daemon.Drain(deadline);
      SendEvent(kDrained);
    });
  }
  for (std::thread& drain : drains) drain.join();
  daemon.Shutdown(absl::Now() + kSlowReaders);
}

// Nothing when stderr is no terminal: then the log lines around it tell enough.
std::function<void(double)> ProgressLine() {
  if (isatty(STDERR_FILENO) == 0) return nullptr;
  return [last = -1](double fraction) mutable {
    const int percent = static_cast<int>(fraction * 100);
    if (percent == last) return;
    last = percent;
    std::fprintf(stderr, "\rloading the model %3d %%%s", percent, percent >= 100 ? "\r\033[K" : "");
  };
}

absl::Status LoadConfig(const Flags& flags, base::YamlSchema* schema) {
  struct stat info {};
  const bool found = stat(kDefaultConfig, &info) == 0;
  if (!flags.config.empty() || found) {
    SKEIN_RETURN_IF_ERROR(schema->LoadFile(flags.config.empty() ? kDefaultConfig : flags.config));
  }
  SKEIN_RETURN_IF_ERROR(ApplyEnvironment(schema, environ));
  for (const std::string& assignment : flags.set) SKEIN_RETURN_IF_ERROR(schema->Set(assignment));
  if (!flags.model.empty()) SKEIN_RETURN_IF_ERROR(schema->Set("model.path=" + flags.model));
  return absl::OkStatus();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "skeind: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Run(const Flags& flags) {
  ServerConfig config;
  base::YamlSchema schema = MakeSchema(&config);
  absl::Status status = LoadConfig(flags, &schema);
  if (status.ok()) status = Validate(config);
  if (!status.ok()) return Fail(status);
  const std::string effective = schema.Print();
  if (flags.print) std::fputs(effective.c_str(), stdout);
  if (flags.check) std::printf("the configuration is fine\n");
  if (flags.print || flags.check) return 0;

  InitLog(config.log);
  InitGrpc();
  HandleSignals();
  LogLine(LogLevel::kInfo, "loading").With("path", config.model.path);
  absl::StatusOr<std::unique_ptr<Daemon>> daemon = Daemon::Start(config, effective, ProgressLine());
  if (!daemon.ok()) return Fail(daemon.status());
  serving = 1;
  (*daemon)->LogReady();
  NotifySystemd("READY=1");
  ServeUntilDrained(**daemon, config.drain_seconds);
  daemon->reset();
  LogLine(LogLevel::kInfo, "stopped");
  return 0;
}

std::string HelpFooter() {
  ServerConfig config;
  return absl::StrCat(
      "Keys for --set and the config file, with their defaults; the environment variable of a.b is "
      "SKEIND_A__B:\n",
      MakeSchema(&config).Help());
}

}  // namespace
}  // namespace skein::server

int main(int argc, char** argv) {
  using skein::server::Flags;
  Flags flags;
  CLI::App app("skeind: serves an RWKV-7 model over gRPC and keeps its conversations.", "skeind");
  app.set_version_flag("--version", std::string("skeind ") + skein::server::kVersion);
  app.add_option("--config", flags.config, "config file (default: ./config.yaml if it is there)");
  app.add_option("--model", flags.model, "checkpoint to serve, instead of model.path");
  app.add_option("--set", flags.set,
                 "key=value, instead of the config file's value; can be repeated")
      ->type_size(1)
      ->allow_extra_args(false);
  app.add_flag("--check-config", flags.check, "only check the configuration");
  app.add_flag("--print-effective-config", flags.print, "print the configuration and exit");
  app.footer(skein::server::HelpFooter);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  return skein::server::Run(flags);
}
