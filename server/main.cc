// skeind: flags and config, start, signals, drain.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/config_loader.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/load_progress.h"
#include "server/log.h"
#include "server/systemd_notify.h"
#include "server/token_command.h"
#include "server/version.h"

namespace skein::server {
namespace {

// After the drain: time for what was computed to reach slow readers.
constexpr absl::Duration kSlowReaders = absl::Seconds(3);
// What the end may take after a drain, as the service manager is told.
constexpr absl::Duration kEnd = absl::Seconds(15);

struct Flags {
  ConfigArguments config;
  bool check = false;
  bool print = false;
};

// One byte an event: a signal to end or to reload, or the end of a drain.
constexpr char kSignal = 's';
constexpr char kReload = 'r';
constexpr char kDrained = 'd';
int event_pipe[2];
volatile sig_atomic_t serving = 0;

void SendEvent(char event) {
  // A full pipe already holds more events than anybody needs.
  [[maybe_unused]] const ssize_t n = write(event_pipe[1], &event, 1);
}

void OnSignal(int number) {
  if (number == SIGHUP) {
    SendEvent(kReload);  // kept until the models have loaded
    return;
  }
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
  sigaction(SIGHUP, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
}

// 0 when there is none until `until`.
char WaitForEvent(absl::Time until) {
  pollfd wait{event_pipe[0], POLLIN, 0};
  char event = 0;
  const int64_t ms = absl::ToInt64Milliseconds(until - absl::Now());
  if (poll(&wait, 1, static_cast<int>(std::clamp<int64_t>(ms, 0, 1000))) <= 0) return 0;
  return read(event_pipe[0], &event, 1) == 1 ? event : 0;
}

void Reload(Daemon& daemon) {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  // systemd wants to know that the signal, and not something before it, has been seen.
  NotifySystemd(absl::StrCat("RELOADING=1\nMONOTONIC_USEC=",
                             int64_t{now.tv_sec} * 1'000'000 + now.tv_nsec / 1000));
  daemon.Reload().IgnoreError();  // told in the log and in the metrics
  NotifySystemd("READY=1");
}

// Serves until a signal has drained the daemon. The first signal gives running requests
// shutdown.drain, the second none.
void ServeUntilDrained(Daemon& daemon) {
  std::vector<std::thread> drains;
  absl::Time drained_by = absl::InfinitePast();
  absl::Time maintain = absl::Now() + absl::Seconds(1);
  while (true) {
    if (absl::Now() < drained_by) AskForMoreTime(kEnd);
    const char event = WaitForEvent(maintain);
    if (absl::Now() >= maintain) {
      maintain = absl::Now() + absl::Seconds(1);
      daemon.Maintain();
      if (daemon.alive()) NotifyWatchdog();
    }
    if (event == kDrained) break;
    if (event == kReload && drains.empty()) Reload(daemon);
    if (event != kSignal || drains.size() >= 2) continue;
    const double seconds = drains.empty() ? daemon.config()->drain_seconds : 0;
    LogLine(LogLevel::kInfo, drains.empty() ? "draining" : "stopping at once")
        .With("seconds", seconds);
    NotifySystemd("STOPPING=1");
    drained_by = absl::Now() + absl::Seconds(seconds);
    drains.emplace_back([&daemon, drained_by] {
      daemon.Drain(drained_by);
      SendEvent(kDrained);
    });
  }
  for (std::thread& drain : drains) drain.join();
  daemon.Shutdown(absl::Now() + kSlowReaders);
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "skeind: %s\n", std::string(status.message()).c_str());
  return 1;
}

int Run(const Flags& flags) {
  const absl::StatusOr<LoadedConfig> config = LoadConfig(flags.config);
  if (!config.ok()) return Fail(config.status());
  if (flags.print) std::fputs(config->text.c_str(), stdout);
  if (flags.check) {
    if (absl::Status status = ValidateCpu(config->config.cpu); !status.ok()) return Fail(status);
    std::printf("the configuration is fine\n");
  }
  if (flags.print || flags.check) return 0;

  InitLog(config->config.log);
  InitGrpc();
  HandleSignals();
  LogLine(LogLevel::kInfo, "loading").With("path", config->config.model.path);
  const Daemon::Reread reread = [&flags] { return LoadConfig(flags.config); };
  const bool terminal = isatty(STDERR_FILENO) != 0;
  absl::StatusOr<std::unique_ptr<Daemon>> daemon =
      Daemon::Start(*config, reread, terminal ? DrawProgress() : nullptr);
  if (!daemon.ok()) return Fail(daemon.status());
  serving = 1;
  (*daemon)->LogReady();
  NotifySystemd("READY=1");
  ServeUntilDrained(**daemon);
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
  app.add_option("--config", flags.config.config,
                 "config file (default: ./config.yaml if it is there)");
  app.add_option("--model", flags.config.model, "checkpoint to serve, instead of model.path");
  app.add_option("--set", flags.config.set,
                 "key=value, instead of the config file's value; can be repeated")
      ->type_size(1)
      ->allow_extra_args(false);
  app.add_flag("--check-config", flags.check, "only check the configuration");
  app.add_flag("--print-effective-config", flags.print, "print the configuration and exit");
  app.footer(skein::server::HelpFooter);
  const skein::server::TokenCommand token(&app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 1;
  }
  if (token.chosen()) return token.Run();
  return skein::server::Run(flags);
}
