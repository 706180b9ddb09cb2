#include "trainer/loop.h"

#include <array>
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
                                                                 const std::string& printed,
                                                                 DataParallel* processes) {
  std::unique_ptr<TrainingRun> run(new TrainingRun(config, processes));
  SKEIN_RETURN_IF_ERROR(run->Prepare(printed));
  return run;
}

absl::Status TrainingRun::OpenFolder(const std::string& printed_config) {
  if (!processes_->lead()) return absl::OkStatus();
  SKEIN_ASSIGN_OR_RETURN(folder_, RunFolder::Open(config_.run));
  SKEIN_RETURN_IF_ERROR(CheckOutput(config_.run, *folder_));
  result_ = config_.run.output.empty() ? folder_->File("last.safetensors") : config_.run.output;
  resumed_ = folder_->has_state();
  return resumed_ ? CheckResumable(printed_config) : absl::OkStatus();
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
  if (!processes_->Same(base::Hash64(printed_config.data(), printed_config.size()))) {
    return processes_->SaidByLead(
        absl::InvalidArgumentError("the processes were given different configs"));
  }
  SKEIN_RETURN_IF_ERROR(processes_->Agree(OpenFolder(printed_config)));
  ShareProgress();
  const int threads =
      SetUpThreads(config_.train.threads > 0 ? config_.train.threads : processes_->threads());
  std::unique_ptr<engine::Checkpoint> init;
  const absl::StatusOr<engine::ModelConfig> sizes = ReadInputs(&init);
  SKEIN_RETURN_IF_ERROR(processes_->Agree(sizes.status()));
  const ComputeChoice compute = Compute(sizes->C);
  progress_.compute_bf16 = compute.bf16;
  progress_.config = printed_config;
  schedule_ = {config_.train.lr, config_.train.lr_final, config_.train.warmup, config_.train.steps};
  model_ = std::make_unique<Rwkv7>(*sizes, compute.bf16);
  optimizer_ = std::make_unique<Optimizer>(&model_->parameters(), config_.train);
  gradients_ = std::make_unique<GradientBuckets>(&model_->parameters(), processes_);
  // Several processes have their shards already, and send gradients while autograd makes them.
  shards_ = std::make_unique<Shards>(
      model_.get(), processes_->size() > 1 ? 1
                                           : ShardCount(Rows(), config_.train.context,
                                                        model_->parameters().count(), threads));
  SKEIN_RETURN_IF_ERROR(processes_->Agree(LoadWeights(init.get())));
  ShareWeights();
  Introduce(compute.reason, threads);
  reporter_ = std::make_unique<Reporter>(config_.log, folder_.get(), progress_.step);
  return absl::OkStatus();
}

// What the lead has read of a state that is gone on with.
void TrainingRun::ShareProgress() {
  const auto share = [&](auto* value) { processes_->FromLead(value, sizeof(*value)); };
  share(&resumed_);
  share(&progress_.step);
  share(&progress_.tokens_seen);
  share(&progress_.best_loss);
  share(&progress_.best_step);
  share(&progress_.compute_bf16);
}

// The data, and the sizes of the model. `init`: the checkpoint to continue from, if any.
absl::StatusOr<engine::ModelConfig> TrainingRun::ReadInputs(
    std::unique_ptr<engine::Checkpoint>* init) {
  if (!config_.model.init_from.empty()) {
    SKEIN_ASSIGN_OR_RETURN(*init, engine::Checkpoint::Open(config_.model.init_from));
  }
  SKEIN_ASSIGN_OR_RETURN(task_, MakeTask(config_, init->get()));
  if (*init == nullptr) return Rwkv7::Sizes(config_.model, task_.V);
  SKEIN_ASSIGN_OR_RETURN(const engine::ModelConfig sizes, (*init)->Config());
  if (task_.tokenizer->vocab_size() <= sizes.V) return sizes;
  return absl::InvalidArgumentError(absl::StrCat(config_.model.init_from, ": has ", sizes.V,
                                                 " vocabulary rows, the tokenizer needs ",
                                                 task_.tokenizer->vocab_size()));
}

ComputeChoice TrainingRun::Compute(int64_t C) const {
  if (resumed_)
    return {progress_.compute_bf16,
            progress_.compute_bf16 ? "bf16 (as before)" : "fp32 (as before)"};
  const ComputeChoice own = ChooseCompute(config_.train.compute, Rows() * config_.train.context, C);
  if (own.bf16 && processes_->Any(!own.bf16))
    return {false, "fp32 (auto: not all processes are faster with bf16)"};
  return own;
}

absl::Status TrainingRun::LoadWeights(const engine::Checkpoint* init) {
  if (!processes_->lead()) return absl::OkStatus();
  if (resumed_) {
    SKEIN_RETURN_IF_ERROR(
        LoadTrainingState(folder_->StateFile(), &model_->parameters(), optimizer_.get()));
  } else if (init != nullptr) {
    SKEIN_RETURN_IF_ERROR(model_->parameters().LoadFrom(*init));
  } else {
    model_->Initialize(static_cast<uint64_t>(config_.train.seed));
  }
  return base::WriteFileAtomically(folder_->File("config.yaml"), progress_.config);
}

void TrainingRun::ShareWeights() {
  int64_t updates = optimizer_->updates();
  processes_->FromLead(&updates, sizeof(updates));
  optimizer_->set_updates(updates);
  for (const at::Tensor& flat : {model_->parameters().master(), optimizer_->m(), optimizer_->v()})
    processes_->FromLead(flat.mutable_data_ptr(), flat.nbytes());
}

void TrainingRun::Introduce(const std::string& compute, int threads) const {
  if (!processes_->lead()) return;
  const std::string processes =
      processes_->size() > 1 ? absl::StrCat(processes_->size(), " processes of ") : "";
  std::printf("model:   %s\n", model_->sizes().ToString().c_str());
  std::printf("data:    %s\n", task_.description.c_str());
  std::printf("compute: %s, %s%d threads\n", compute.c_str(), processes.c_str(), threads);
  std::printf(
      "run:     %s, %lld steps of %lld x %lld tokens%s\n", folder_->path().c_str(),
      static_cast<long long>(config_.train.steps),
      static_cast<long long>(config_.train.batch * config_.train.accumulate),
      static_cast<long long>(config_.train.context),
      progress_.step > 0 ? absl::StrCat(", going on after step ", progress_.step).c_str() : "");
  if (folder_->existed() && !resumed_)
    std::printf("         nothing was saved yet: starting from step 0\n");
  std::fflush(stdout);
}

absl::Status TrainingRun::Train(const std::atomic<bool>& stop) {
  begin_ = std::chrono::steady_clock::now();
  SKEIN_RETURN_IF_ERROR(processes_->Agree(SaveInitial()));
  // The state of the last step is written after the last validation.
  const bool finished = resumed_ && progress_.step == config_.train.steps;
  while (progress_.step < config_.train.steps) {
    if (processes_->Any(stop)) return SaveStopped();
    Step();
    if (progress_.step == config_.train.steps) break;
    if (config_.evaluate.every > 0 && progress_.step % config_.evaluate.every == 0)
      MaybeValidate(false);
    if (config_.save.every > 0 && progress_.step % config_.save.every == 0) {
      SKEIN_RETURN_IF_ERROR(CheckAlike());
      SaveDuringTraining();
    }
  }
  reporter_->Finish();
  if (!finished) MaybeValidate(true);
  SKEIN_RETURN_IF_ERROR(CheckAlike());
  return processes_->Agree(SaveAtTheEnd());
}

// Forward and backward of all micro-batches. Why there is no gradient to step by; empty: there is.
std::string TrainingRun::AccumulateGradient(StepLine* line) {
  const int64_t parts = config_.train.accumulate;
  const auto first_sample = [&](int64_t part) {
    return (progress_.step * parts + part) * config_.train.batch + processes_->rank() * Rows();
  };
  std::vector<std::vector<Batch>> batches;
  std::array<double, 2> counted{};  // of all processes
  auto& [weights, labels] = counted;
  for (int64_t i = 0; i < parts; ++i) {
    batches.push_back(shards_->Get(*task_.source, first_sample(i), Rows()));
    for (const Batch& batch : batches.back()) {
      weights += batch.weight_sum;
      labels += static_cast<double>(batch.used);
    }
  }
  processes_->Sum(absl::MakeSpan(counted));
  if (labels == 0) return "none of its labels counts";
  double sum = 0;
  for (int64_t i = 0; i < parts && std::isfinite(sum); ++i) {
    ForwardOptions options;
    options.dropout = config_.model.dropout;
    options.dropout_seed = Mix64(static_cast<uint64_t>(config_.train.seed), kDropoutStream);
    options.first_sample = first_sample(i);
    if (i + 1 == parts) gradients_->Begin();
    sum += shards_->Backward(batches[static_cast<size_t>(i)], options, config_.train.l2wrap,
                             {weights, labels}, [this](int i) { gradients_->OnGradient(i); });
  }
  shards_->SumGradients();
  gradients_->Finish();
  line->loss = processes_->Sum(sum) / weights;
  if (!std::isfinite(line->loss)) return absl::StrFormat("the loss is not finite (%g)", line->loss);
  line->norm = processes_->FromLead(optimizer_->GradientNorm());
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
  const std::vector<Batch> batches = task_.Validation(config_, last, Rows());
  if (batches.empty()) return;
  const Evaluation evaluation = Evaluate(*model_, *task_.tokenizer, batches, processes_);
  ValidationReport report;
  report.step = progress_.step;
  report.loss = evaluation.loss;
  report.bits_per_byte = evaluation.bits_per_byte;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
  report.best = progress_.best_loss == 0 || report.loss < progress_.best_loss;
  if (processes_->lead()) AddTexts(&report);
  reporter_->Validation(report);
  if (!report.best) return;
  progress_.best_loss = report.loss;
  progress_.best_step = progress_.step;
  if (!config_.save.best || !processes_->lead()) return;
  const absl::Status status = SaveCheckpoint(folder_->File("best.safetensors"));
  if (!status.ok())
    reporter_->Print("warning: best.safetensors is not written: " + std::string(status.message()));
}

void TrainingRun::AddTexts(ValidationReport* report) const {
  if (!task_.demo) {
    report->samples = Samples();
    return;
  }
  const RecallResult recall =
      TestRecall(*model_, *task_.tokenizer, Mix64(config_.train.seed, kRecallStream),
                 kRecallDialogues, kRecallTurns);
  report->recall = recall.rate();
  report->samples = recall.exchanges;
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

// All processes made the same updates with the same sums. That MPI gives all the same bytes is
// usual, not promised; processors of different kinds may round differently.
absl::Status TrainingRun::CheckAlike() {
  if (processes_->size() == 1) return absl::OkStatus();
  const at::Tensor& weights = model_->parameters().master();
  if (processes_->Same(base::Hash64(weights.const_data_ptr(), weights.nbytes())))
    return absl::OkStatus();
  return processes_->SaidByLead(absl::InternalError(absl::StrCat(
      "the weights of the processes are no longer alike at step ", progress_.step,
      ", and are not saved: their machines' processors or MPI's settings differ. Go on from the "
      "last save on machines of one kind: --set run.resume=always")));
}

absl::Status TrainingRun::SaveState() {
  return SaveTrainingState(folder_->StateFile(), progress_, model_->parameters(), *optimizer_);
}

absl::Status TrainingRun::SaveCheckpoint(const std::string& path) const {
  return ExportCheckpoint(path, model_->parameters(), config_.save.dtype, Metadata());
}

absl::Status TrainingRun::SaveInitial() const {
  if (!processes_->lead() || !config_.save.initial || progress_.step > 0) return absl::OkStatus();
  return SaveCheckpoint(folder_->File("initial.safetensors"));
}

// The state last: what was not written when the process was killed, the resumed run writes again. A
// full disk is said and survived: the files of the last save are whole, and the next save tries
// again.
void TrainingRun::SaveDuringTraining() {
  if (!processes_->lead()) return;
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

absl::Status TrainingRun::SaveStopped() {
  reporter_->Finish();
  SKEIN_RETURN_IF_ERROR(CheckAlike());
  SKEIN_RETURN_IF_ERROR(processes_->Agree(processes_->lead() ? SaveState() : absl::OkStatus()));
  return processes_->SaidByLead(absl::CancelledError(
      absl::StrCat("stopped after step ", progress_.step, "; ", config_.run.folder,
                   "/state.safetensors is written. Go on with --set run.resume=always")));
}

absl::Status TrainingRun::SaveAtTheEnd() {
  if (!processes_->lead()) return absl::OkStatus();
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
