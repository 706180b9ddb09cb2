// The article's four tables in one run: Skein's RWKV-7 beside a plain transformer of the same
// width, depth and parameter count. Prints a Markdown page and writes it with JSON and pictures.
//
//   article_bench [--quick|--smoke] [--only speed|quality] [--text FILE] [--threads N]
//                 [--out FOLDER]

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "bench/article/report.h"
#include "engine/base/check.h"
#include "trainer/compute.h"

namespace skein::article {
namespace {

struct Options {
  bool quick = false, smoke = false;
  std::string only, text = "trainer/examples/tinyshakespeare.txt", out = "build/bench/article";
  int threads = 0;
  SpeedOptions speed;
  QualityOptions quality;
};

// As skein-train: LibTorch's threads spin for a tenth of a millisecond, not for several.
void BoundThreadSpinning(char** argv) {
  if (getenv("OMP_WAIT_POLICY") != nullptr || getenv("GOMP_SPINCOUNT") != nullptr) return;
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error && setenv("GOMP_SPINCOUNT", "100000", 1) == 0) execv(self.c_str(), argv);
  std::fprintf(stderr, "article_bench: warning: cannot set GOMP_SPINCOUNT\n");
}

std::string Machine(int threads) {
  std::string processor = "unknown processor";
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) != 0) continue;
    processor = line.substr(line.find(':') + 2);
    break;
  }
  double load = 0;
  if (getloadavg(&load, 1) != 1) load = -1;
  return absl::StrFormat("%s, %d threads, load %.1f at the start, %s.", processor, threads, load,
                         absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone()));
}

void Shorten(Options* options) {
  options->speed.seconds = 0.2;
  options->speed.contexts = {512, 2048, 8192, 32768};
  options->speed.batch_contexts = {512};
  options->speed.read_tokens = 2048;
  options->quality.trial_seconds = 0.3;
  options->quality.text_steps = 80;
  options->quality.demo_steps = 50;
  options->quality.passages = 100;
  options->quality.dialogues = 20;
  options->quality.evaluations = 3;
  options->quality.windows = 100;
}

// Seconds: every part runs, its figures mean nothing.
void ShortenToSmoke(Options* options) {
  options->speed.tiny = true;
  options->speed.seconds = 0.01;
  options->speed.contexts = {512, 1024};
  options->speed.batches = {1, 2};
  options->speed.batch_contexts = {512};
  options->speed.read_tokens = 512;
  options->quality.trial_seconds = 0.01;
  options->quality.text_steps = 4;
  options->quality.demo_steps = 2;
  options->quality.passages = 20;
  options->quality.dialogues = 2;
  options->quality.evaluations = 2;
  options->quality.windows = 10;
}

absl::Status Run(Options options) {
  if (options.quick) Shorten(&options);
  if (options.smoke) ShortenToSmoke(&options);
  options.quality.text = options.text;
  options.speed.threads = options.threads;
  const absl::Time start = absl::Now();
  Article article;
  article.machine = Machine(trainer::SetUpThreads(options.threads));
  if (options.quick) article.machine += " A quick run: short training, few repetitions.";
  if (options.smoke) article.machine += " A trial of the bench: its figures mean nothing.";
  if (options.only != "speed") {
    SKEIN_ASSIGN_OR_RETURN(article.quality, CompareQuality(options.quality));
    article.has_quality = true;
  }
  if (options.only != "quality") {
    SKEIN_ASSIGN_OR_RETURN(article.speed, CompareSpeed(options.speed));
    article.has_speed = true;
  }
  SKEIN_RETURN_IF_ERROR(WriteArticle(article, options.out));
  std::printf("%s", Page(article).c_str());
  std::printf("%s/article.md, article.json and pictures, in %s\n", options.out.c_str(),
              absl::FormatDuration(absl::Trunc(absl::Now() - start, absl::Seconds(1))).c_str());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  BoundThreadSpinning(argv);
  Options options;
  CLI::App app("Skein beside a transformer: time, memory, quality, batches", "article_bench");
  CLI::Option* quick = app.add_flag("--quick", options.quick, "under two minutes");
  app.add_flag("--smoke", options.smoke, "seconds, on tiny models: whether it runs")
      ->excludes(quick);
  app.add_option("--only", options.only)->check(CLI::IsMember({"speed", "quality"}));
  app.add_option("--text", options.text, "what both models learn");
  app.add_option("--threads", options.threads, "0: all that the process may use")
      ->check(CLI::Range(0, 4096));
  app.add_option("--read-tokens", options.speed.read_tokens,
                 "Skein really reads contexts up to there; beyond, its state is that after these")
      ->check(CLI::Range(512, 10000000))
      ->excludes(quick);
  app.add_option("--out", options.out, "folder of the results");
  app.add_option("--text-steps", options.quality.text_steps)
      ->check(CLI::Range(1, 10000000))
      ->excludes(quick);
  app.add_option("--demo-steps", options.quality.demo_steps)
      ->check(CLI::Range(1, 10000000))
      ->excludes(quick);
  app.add_option("--rwkv-lr", options.quality.rwkv_lr)->check(CLI::PositiveNumber);
  app.add_option("--transformer-lr", options.quality.transformer_lr)->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  absl::Status status;
  try {
    status = Run(options);
  } catch (const std::exception& error) {  // LibTorch: out of memory, mostly
    status = absl::InternalError(error.what());
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "article_bench: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace
}  // namespace skein::article

int main(int argc, char** argv) { return skein::article::Main(argc, argv); }
