#pragma once
// One training run from its config to its checkpoint, by one process or by several: those behind
// the lead have no run folder and say nothing.

#include <atomic>
#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/batches.h"
#include "trainer/compute.h"
#include "trainer/config.h"
#include "trainer/data_parallel.h"
#include "trainer/gradient_buckets.h"
#include "trainer/models/rwkv7.h"
#include "trainer/optimizer.h"
#include "trainer/report.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"
#include "trainer/shards.h"
#include "trainer/task.h"
#include "trainer/training_state.h"

namespace skein::trainer {

class TrainingRun {
 public:
  // Opens the run folder, loads data and, when resuming, the state; says on the screen what will be
  // done.
  // `processes` outlives the run. What fails in one of them ends the run in all (DataParallel).
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Create(const Config& config,
                                                             const std::string& printed_config,
                                                             DataParallel* processes);
  // Trains to the end, or until *stop turns true in any process: then the state is written and
  // CANCELLED says how to go on.
  absl::Status Train(const std::atomic<bool>& stop);
  // The file to serve.
  const std::string& result() const { return result_; }
  // What skeind needs beside it: a vocabulary too large to be part of it. Empty: nothing.
  const std::string& vocabulary_file() const { return task_.vocabulary_file; }

 private:
  TrainingRun(const Config& config, DataParallel* processes)
      : config_(config), processes_(processes) {}
  absl::Status Prepare(const std::string& printed_config);
  absl::Status OpenFolder(const std::string& printed_config);
  absl::Status CheckResumable(const std::string& printed_config);
  void ShareProgress();
  absl::StatusOr<engine::ModelConfig> ReadInputs(std::unique_ptr<engine::Checkpoint>* init);
  ComputeChoice Compute(int64_t C) const;
  absl::Status LoadWeights(const engine::Checkpoint* init);
  void ShareWeights();
  void Introduce(const std::string& compute, int threads) const;
  int64_t Rows() const { return config_.train.batch / processes_->size(); }
  void Step();
  std::string AccumulateGradient(StepLine* line);
  void MaybeValidate(bool last);
  void AddTexts(ValidationReport* report) const;
  std::vector<std::string> Samples() const;
  absl::Status CheckAlike();
  absl::Status SaveState();
  absl::Status SaveCheckpoint(const std::string& path) const;
  absl::Status SaveInitial() const;
  void SaveDuringTraining();
  absl::Status SaveStopped();
  absl::Status SaveAtTheEnd();
  std::map<std::string, std::string> Metadata() const;

  const Config config_;
  DataParallel* const processes_;
  std::unique_ptr<RunFolder> folder_;  // of the lead
  bool resumed_ = false;               // from a state that was there
  Task task_;
  Progress progress_;
  Schedule schedule_;
  std::unique_ptr<Rwkv7> model_;
  std::unique_ptr<Shards> shards_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<GradientBuckets> gradients_;
  std::unique_ptr<Reporter> reporter_;
  std::string result_;
  std::chrono::steady_clock::time_point begin_;  // of Train
};

}  // namespace skein::trainer
