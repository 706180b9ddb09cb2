// skein-train --config train.yaml [--set key=value]...
// mpirun -n 2 skein-train ...: the same model by two processes (data_parallel.h).

#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "engine/base/check.h"
#include "engine/base/strict_yaml.h"
#include "trainer/binidx.h"
#include "trainer/config.h"
#include "trainer/data_parallel.h"
#include "trainer/loop.h"
#include "trainer/tensor_memory.h"

namespace skein::trainer {
namespace {

std::atomic<bool> stop_requested{false};

// The first Ctrl-C ends the run at the next step; a second one ends the process at once.
void OnSignal(int number) {
  stop_requested = true;
  signal(number, SIG_DFL);
}

// What libgomp's waiting threads do a tenth of a millisecond: it counts turns of one `pause`, which
// takes from 10 to 140 cycles.
std::string SpinCount() {
  constexpr int kTurns = 2000;
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < kTurns; ++i) __builtin_ia32_pause();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  return absl::StrCat(std::clamp<int64_t>(std::llround(1e-4 * kTurns / took.count()), 500, 20000));
}

// What LibTorch's libraries read from the environment when they are loaded, where the user has not
// said otherwise; the program starts itself anew with it.
// - OpenMP's threads spin for milliseconds while they wait, which makes training many times
//   slower as soon as anything else wants a core; not spinning at all costs a third of a small
//   model's speed: a bounded spin.
// - MKL promises the same bits only in this mode ("Conditional Numerical Reproducibility" in its
//   guide: static scheduling, fixed cache sizes). Without it a resumed run was seen, rarely and
//   beside other work, to differ in last bits; that MKL was the cause is not proven.
void SetUpLibraries(char** argv) {
  bool changed = false, failed = false;
  const auto set = [&](const char* name, const std::string& value) {
    if (getenv(name) != nullptr) return;
    changed = true;
    failed |= setenv(name, value.c_str(), 1) != 0;
  };
  if (getenv("OMP_WAIT_POLICY") == nullptr) set("GOMP_SPINCOUNT", SpinCount());
  set("MKL_CBWR", "AUTO,STRICT");
  if (!changed) return;
  // By its own path, so that the process keeps its name.
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!failed && !error) execv(self.c_str(), argv);
  std::fprintf(stderr, "skein-train: warning: cannot set GOMP_SPINCOUNT and MKL_CBWR\n");
}

struct Arguments {
  std::string config;
  std::vector<std::string> assignments;
  bool print_config = false;
  std::string binidx;
};

absl::Status LoadConfig(const Arguments& arguments, base::YamlSchema* schema) {
  if (!arguments.config.empty()) SKEIN_RETURN_IF_ERROR(schema->LoadFile(arguments.config));
  for (const std::string& assignment : arguments.assignments)
    SKEIN_RETURN_IF_ERROR(schema->Set(assignment));
  return absl::OkStatus();
}

absl::Status WriteDataAsBinidx(const Config& config, const std::string& prefix) {
  if (config.data.kind == "recall-demo")
    return absl::InvalidArgumentError("--write-binidx: the demo has no files");
  SKEIN_ASSIGN_OR_RETURN(const Task task, MakeTask(config, nullptr));
  SKEIN_RETURN_IF_ERROR(WriteBinidx(prefix, task.train_tokens));
  std::printf("%s.bin, %s.idx: %lld tokens (loss weights are not part of this format)\n",
              prefix.c_str(), prefix.c_str(), static_cast<long long>(task.train_tokens.size()));
  if (task.validation_tokens.size() == 0) return absl::OkStatus();
  SKEIN_RETURN_IF_ERROR(WriteBinidx(prefix + ".validation", task.validation_tokens));
  std::printf("%s.validation.bin, .idx: %lld tokens\n", prefix.c_str(),
              static_cast<long long>(task.validation_tokens.size()));
  return absl::OkStatus();
}

absl::Status CheckDivides(int64_t batch, int processes) {
  if (batch % processes == 0) return absl::OkStatus();
  const int64_t below = batch / processes * processes, above = below + processes;
  return absl::InvalidArgumentError(absl::StrCat(
      "train.batch is ", batch,
      ", of all processes together, and must be a multiple of their number, ", processes,
      ": --set train.batch=", above, below > 0 ? absl::StrCat(" or ", below) : ""));
}

// As a shell reads it back.
std::string Quoted(const std::string& word) {
  constexpr char kPlain[] =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=+,:@%";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  return absl::StrCat("'", absl::StrReplaceAll(word, {{"'", "'\\''"}}), "'");
}

std::string ServeCommand(const std::string& program, const TrainingRun& run) {
  const std::filesystem::path beside = std::filesystem::path(program).parent_path() / "skeind";
  std::error_code error;
  const std::string daemon = std::filesystem::exists(beside, error) ? beside.string() : "skeind";
  const std::string config =
      std::filesystem::exists("config.yaml", error) ? " --config config.yaml" : "";
  std::string command = absl::StrCat(Quoted(daemon), config, " --model ", Quoted(run.result()));
  if (!run.vocabulary_file().empty()) {
    absl::StrAppend(&command, " --set ", Quoted("model.vocabulary=" + run.vocabulary_file()));
  }
  return command;
}

absl::Status Train(const Config& config, const std::string& printed, const std::string& program,
                   DataParallel* processes) {
  SKEIN_ASSIGN_OR_RETURN(const std::unique_ptr<TrainingRun> run,
                         TrainingRun::Create(config, printed, processes));
  signal(SIGINT, OnSignal);
  signal(SIGTERM, OnSignal);
  signal(SIGUSR1, OnSignal);  // mpirun passes it on, and Slurm can send it before the time is over
  const absl::Time begin = absl::Now();
  SKEIN_RETURN_IF_ERROR(run->Train(stop_requested));
  if (!processes->lead()) return absl::OkStatus();
  const absl::Duration took = absl::Ceil(absl::Now() - begin, absl::Seconds(1));
  std::printf("\nTrained in %s. %s is ready; serve it with\n  %s\n",
              absl::FormatDuration(took).c_str(), run->result().c_str(),
              ServeCommand(program, *run).c_str());
  return absl::OkStatus();
}

absl::Status Run(const Arguments& arguments, const std::string& program, const Config& config,
                 base::YamlSchema* schema, DataParallel* processes) {
  SKEIN_RETURN_IF_ERROR(processes->Agree(LoadConfig(arguments, schema)));
  const bool trains = !arguments.print_config && arguments.binidx.empty();
  if (!trains && !processes->lead()) return absl::OkStatus();  // that is the work of one
  if (arguments.print_config) {
    std::fputs(schema->Print().c_str(), stdout);
    return absl::OkStatus();
  }
  SKEIN_RETURN_IF_ERROR(trains ? processes->Agree(Validate(config)) : Validate(config));
  if (!trains) return WriteDataAsBinidx(config, arguments.binidx);
  SKEIN_RETURN_IF_ERROR(processes->Agree(CheckDivides(config.train.batch, processes->size())));
  return Train(config, schema->Print(), program, processes);
}

std::string ProcessesHelp() {
  return absl::StrCat(
      "Several processes train one model faster, on one machine or many: ",
      "'mpirun -n 2 --bind-to none skein-train ...', or srun. ",
      "train.batch is then of all together.\n",
      kBuiltWithMpi ? "" : "(This program was built without MPI: deploy/install-deps.sh --mpi.)\n");
}

// Says an error, unless another process does, and returns the exit code.
int Exit(const absl::Status& status) {
  if (status.ok()) return 0;
  if (!status.message().empty())
    std::fprintf(stderr, "skein-train: %s\n", std::string(status.message()).c_str());
  return status.code() == absl::StatusCode::kCancelled ? 130 : 1;
}

int Main(int argc, char** argv) {
  SetUpLibraries(argv);
  UseTensorMemory();
  Config config;
  base::YamlSchema schema;
  Describe(&config, &schema);
  Arguments arguments;
  CLI::App app("skein-train: trains RWKV-7 models that skeind serves", "skein-train");
  app.add_option("--config", arguments.config,
                 "the run's YAML file; trainer/configs/ has examples");
  app.add_option("--set", arguments.assignments, "key=value, overrides the file; may be repeated")
      ->take_all();
  app.add_flag("--print-effective-config", arguments.print_config,
               "print all keys with their values and exit");
  app.add_option("--write-binidx", arguments.binidx,
                 "tokenise the data into PREFIX.bin and PREFIX.idx and exit");
  app.footer(ProcessesHelp() + "\nKeys of the config (with their defaults):\n" + schema.Help());
  CLI11_PARSE(app, argc, argv);
  absl::StatusOr<std::unique_ptr<DataParallel>> processes = DataParallel::Join();
  if (!processes.ok()) return Exit(processes.status());
  try {
    return Exit(Run(arguments, argv[0], config, &schema, processes->get()));
  } catch (const std::exception& error) {  // LibTorch: out of memory, mostly
    const int code = Exit(absl::InternalError(error.what()));
    (*processes)->EndAll();
    return code;
  }
}

}  // namespace
}  // namespace skein::trainer

int main(int argc, char** argv) { return skein::trainer::Main(argc, argv); }
