#include "trainer/loop.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "trainer/compute.h"
#include "trainer/demo_data.h"
#include "trainer/evaluate.h"
#include "trainer/export.h"
#include "trainer/generate.h"
#include "trainer/random.h"

namespace skein::trainer {
namespace {

// Streams of random numbers that must not meet.
constexpr uint64_t kDropoutStream = 0x64726f70, kSampleStream = 0x73616d70,
                   kRecallStream = 0x7265636c;
constexpr int64_t kRecallDialogues = 64, kRecallTurns = 12;

absl::Status CheckOutput(const RunConfig& run, const RunFolder& folder) {
  if (run.output.empty() || folder.existed() || !std::filesystem::exists(run.output))
    return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("run.output: ", run.output, " exists already: name another or move it away"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingRun>> TrainingRun::Create(const Config& config,
                                                                 const std::string& printed) {
  SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<RunFolder> folder, RunFolder::Open(config.run));
  SKEIN_RETURN_IF_ERROR(CheckOutput(config.run, *folder));
  std::unique_ptr<TrainingRun> run(new TrainingRun(config, std::move(folder)));
  SKEIN_RETURN_IF_ERROR(run->Prepare(printed));
  return run;
}

absl::Status TrainingRun::CheckResumable(const std::string& printed_config) {
  SKEIN_ASSIGN_OR_RETURN(progress_, ReadProgress(folder_->StateFile()));
  const std::vector<std::string> changes = IncompatibleChanges(progress_.config, printed_config);
  if (changes.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("run.folder: ", folder_->path(),
                   " was trained with another config, which cannot be changed on the way: ",
                   absl::StrJoin(changes, "; "),
                   ". To train on from its weights in a new folder: --set model.init_from=",
                   folder_->File("last.safetensors"), " --set run.folder=..."));
}

absl::Status TrainingRun::Prepare(const std::string& printed_config) {
  if (folder_->has_state()) SKEIN_RETURN_IF_ERROR(CheckResumable(printed_config));
  const int threads = SetUpThreads(config_.train.threads);
  std::unique_ptr<engine::Checkpoint> init;
  if (!config_.model.init_from.empty()) {
    SKEIN_ASSIGN_OR_RETURN(init, engine::Checkpoint::Open(config_.model.init_from));
  }
  SKEIN_ASSIGN_OR_RETURN(task_, MakeTask(config_, init.get()));
  engine::ModelConfig sizes = Rwkv7::Sizes(config_.model, task_.V);
  if (init != nullptr) {
    SKEIN_ASSIGN_OR_RETURN(sizes, init->Config());
    if (task_.tokenizer->vocab_size() > sizes.V) {
      return absl::InvalidArgumentError(absl::StrCat(config_.model.init_from, ": has ", sizes.V,
                                                     " vocabulary rows, the tokenizer needs ",
                                                     task_.tokenizer->vocab_size()));
    }
  }
  ComputeChoice compute =
      ChooseCompute(config_.train.compute, config_.train.batch * config_.train.context, sizes.C);
  if (folder_->has_state())
    compute = {progress_.compute_bf16,
               progress_.compute_bf16 ? "bf16 (as before)" : "fp32 (as before)"};
  model_ = std::make_unique<Rwkv7>(sizes, compute.bf16);
  optimizer_ = std::make_unique<Optimizer>(&model_->parameters(), config_.train);
  if (folder_->has_state()) {
    SKEIN_RETURN_IF_ERROR(
        LoadTrainingState(folder_->StateFile(), &model_->parameters(), optimizer_.get()));
  } else if (init != nullptr) {
    SKEIN_RETURN_IF_ERROR(model_->parameters().LoadFrom(*init));
  } else {
    model_->Initialize(static_cast<uint64_t>(config_.train.seed));
  }
  progress_.compute_bf16 = compute.bf16;
  progress_.config = printed_config;
  schedule_ = {config_.train.lr, config_.train.lr_final, config_.train.warmup, config_.train.steps};
  result_ = config_.run.output.empty() ? folder_->File("last.safetensors") : config_.run.output;
  SKEIN_RETURN_IF_ERROR(base::WriteFileAtomically(folder_->File("config.yaml"), printed_config));
  Introduce(compute.reason, threads);
  reporter_ = std::make_unique<Reporter>(config_.log, folder_.get(), progress_.step);
  return absl::OkStatus();
}

void TrainingRun::Introduce(const std::string& compute, int threads) const {
  std::printf("model:   %s\n", model_->sizes().ToString().c_str());
  std::printf("data:    %s\n", task_.description.c_str());
  std::printf("compute: %s, %d threads\n", compute.c_str(), threads);
  std::printf(
      "run:     %s, %lld steps of %lld x %lld tokens%s\n", folder_->path().c_str(),
      static_cast<long long>(config_.train.steps),
      static_cast<long long>(config_.train.batch * config_.train.accumulate),
      static_cast<long long>(config_.train.context),
      progress_.step > 0 ? absl::StrCat(", going on after step ", progress_.step).c_str() : "");
  if (folder_->existed() && !folder_->has_state())
    std::printf("         nothing was saved yet: starting from step 0\n");
  std::fflush(stdout);
}

absl::Status TrainingRun::Train(const std::atomic<bool>& stop) {
  if (config_.save.initial && progress_.step == 0) {
    SKEIN_RETURN_IF_ERROR(SaveCheckpoint(folder_->File("initial.safetensors")));
  }
  // The state of the last step is written after the last validation.
  const bool finished = folder_->has_state() && progress_.step == config_.train.steps;
  while (progress_.step < config_.train.steps) {
    if (stop) {
      reporter_->Finish();
      SKEIN_RETURN_IF_ERROR(SaveState());
      return absl::CancelledError(absl::StrCat("stopped after step ", progress_.step, "; ",
                                               folder_->StateFile(),
                                               " is written. Go on with --set run.resume=always"));
    }
    Step();
    if (progress_.step == config_.train.steps) break;
    if (config_.evaluate.every > 0 && progress_.step % config_.evaluate.every == 0)
      MaybeValidate(false);
    if (config_.save.every > 0 && progress_.step % config_.save.every == 0) SaveDuringTraining();
  }
  reporter_->Finish();
  if (!finished) MaybeValidate(true);
  return SaveAtTheEnd();
}

// Forward and backward of all micro-batches. Why there is no gradient to step by; empty: there is.
std::string TrainingRun::AccumulateGradient(StepLine* line) {
  const int64_t B = config_.train.batch, parts = config_.train.accumulate;
  std::vector<Batch> batches;
  LossDenominators denominators{0, 0};
  for (int64_t i = 0; i < parts; ++i) {
    batches.push_back(task_.source->Get((progress_.step * parts + i) * B, B));
    denominators.weights += batches.back().weight_sum;
    denominators.rows += static_cast<double>(batches.back().used);
  }
  if (denominators.rows == 0) return "none of its labels counts";
  double sum = 0;
  for (int64_t i = 0; i < parts; ++i) {
    ForwardOptions options;
    options.dropout = config_.model.dropout;
    options.dropout_seed = Mix64(Mix64(static_cast<uint64_t>(config_.train.seed), kDropoutStream),
                                 static_cast<uint64_t>(progress_.step * parts + i));
    auto [loss, part] = BatchLoss(*model_, batches[static_cast<size_t>(i)], options,
                                  config_.train.l2wrap, denominators);
    sum += part;
    if (!std::isfinite(part) || !std::isfinite(loss.item<double>())) break;
    loss.backward();
  }
  line->loss = sum / denominators.weights;
  if (!std::isfinite(line->loss)) return absl::StrFormat("the loss is not finite (%g)", line->loss);
  line->norm = optimizer_->GradientNorm();
  if (std::isfinite(line->norm)) return "";
  return absl::StrFormat("the gradient is not finite (norm %g, loss %g)", line->norm, line->loss);
}

void TrainingRun::Step() {
  const auto start = std::chrono::steady_clock::now();
  StepLine line;
  line.lr = schedule_.At(progress_.step);
  const std::string skipped = AccumulateGradient(&line);
  if (skipped.empty()) {
    optimizer_->Step(line.lr, line.norm);
  } else {
    optimizer_->Skip();
  }
  ++progress_.step;
  const int64_t tokens = config_.train.batch * config_.train.accumulate * config_.train.context;
  progress_.tokens_seen += tokens;
  line.step = progress_.step;
  line.steps = config_.train.steps;
  line.tokens_per_second =
      static_cast<double>(tokens) /
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (skipped.empty()) {
    reporter_->Step(line, progress_.tokens_seen);
  } else {
    reporter_->Skipped(line.step, skipped);
  }
}

void TrainingRun::MaybeValidate(bool last) {
  const std::vector<Batch> batches = task_.Validation(config_, last);
  if (batches.empty()) return;
  const Evaluation evaluation = Evaluate(*model_, *task_.tokenizer, batches);
  ValidationReport report;
  report.step = progress_.step;
  report.loss = evaluation.loss;
  report.bits_per_byte = evaluation.bits_per_byte;
  report.best = progress_.best_loss == 0 || report.loss < progress_.best_loss;
  if (task_.demo) {
    const RecallResult recall =
        TestRecall(*model_, *task_.tokenizer, Mix64(config_.train.seed, kRecallStream),
                   kRecallDialogues, kRecallTurns);
    report.recall = recall.rate();
    report.samples = recall.exchanges;
  } else {
    report.samples = Samples();
  }
  reporter_->Validation(report);
  if (!report.best) return;
  progress_.best_loss = report.loss;
  progress_.best_step = progress_.step;
  if (!config_.save.best) return;
  const absl::Status status = SaveCheckpoint(folder_->File("best.safetensors"));
  if (!status.ok())
    reporter_->Print("warning: best.safetensors is not written: " + std::string(status.message()));
}

std::vector<std::string> TrainingRun::Samples() const {
  const int64_t rows = config_.evaluate.samples;
  if (rows == 0) return {};
  std::vector<int32_t> prompt = task_.tokenizer->Encode(config_.evaluate.prompt);
  if (prompt.empty()) prompt.push_back(engine::kEndOfDocument);
  GenerateOptions options;
  options.max_tokens = config_.evaluate.sample_tokens;
  options.temperature = config_.evaluate.temperature;
  options.seed = Mix64(Mix64(config_.train.seed, kSampleStream), progress_.step);
  options.vocab = task_.tokenizer->vocab_size();
  std::vector<std::string> samples;
  for (const Script& answers :
       Generate(*model_, std::vector<Script>(rows, Script{prompt}), options)) {
    samples.push_back(config_.evaluate.prompt + task_.tokenizer->Decode(answers[0]));
  }
  return samples;
}

std::map<std::string, std::string> TrainingRun::Metadata() const {
  std::map<std::string, std::string> metadata = task_.metadata;
  metadata[engine::kMetaTokensSeen] = absl::StrCat(progress_.tokens_seen);
  return metadata;
}

absl::Status TrainingRun::SaveState() {
  return SaveTrainingState(folder_->StateFile(), progress_, model_->parameters(), *optimizer_);
}

absl::Status TrainingRun::SaveCheckpoint(const std::string& path) const {
  return ExportCheckpoint(path, model_->parameters(), config_.save.dtype, Metadata());
}

// The state last: what was not written when the process was killed, the resumed run writes again. A
// full disk is said and survived: the files of the last save are whole, and the next save tries
// again.
void TrainingRun::SaveDuringTraining() {
  absl::Status status = SaveCheckpoint(folder_->File("last.safetensors"));
  if (status.ok() && config_.save.keep_every) {
    status =
        SaveCheckpoint(folder_->File(absl::StrFormat("step-%06d.safetensors", progress_.step)));
  }
  if (status.ok()) status = SaveState();
  if (status.ok()) return;
  reporter_->Print(absl::StrCat("warning: step ", progress_.step,
                                " is not saved, the save before it is whole: ", status.message()));
}

absl::Status TrainingRun::SaveAtTheEnd() {
  SKEIN_RETURN_IF_ERROR(SaveState());
  SKEIN_RETURN_IF_ERROR(SaveCheckpoint(folder_->File("last.safetensors")));
  if (config_.save.pth) {
    SKEIN_RETURN_IF_ERROR(
        ExportPth(folder_->File("last.pth"), model_->parameters(), config_.save.dtype));
  }
  if (config_.run.output.empty()) return absl::OkStatus();
  const std::filesystem::path parent = std::filesystem::path(config_.run.output).parent_path();
  if (!parent.empty()) SKEIN_RETURN_IF_ERROR(base::MakeFolder(parent.string()));
  return SaveCheckpoint(config_.run.output);
}

}  // namespace skein::trainer
