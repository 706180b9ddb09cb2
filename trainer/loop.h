#pragma once
// One training run from its config to its checkpoint.

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/batches.h"
#include "trainer/config.h"
#include "trainer/models/rwkv7.h"
#include "trainer/optimizer.h"
#include "trainer/report.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"
#include "trainer/task.h"
#include "trainer/training_state.h"

namespace skein::trainer {

class TrainingRun {
 public:
  // Opens the run folder, loads data and, when resuming, the state; says on the screen what will be
  // done.
  static absl::StatusOr<std::unique_ptr<TrainingRun>> Create(const Config& config,
                                                             const std::string& printed_config);
  // Trains to the end, or until *stop turns true: then the state is written and CANCELLED says how
  // to go on.
  absl::Status Train(const std::atomic<bool>& stop);
  // The file to serve.
  const std::string& result() const { return result_; }
  // What skeind needs beside it: a vocabulary too large to be part of it. Empty: nothing.
  const std::string& vocabulary_file() const { return task_.vocabulary_file; }

 private:
  TrainingRun(const Config& config, std::unique_ptr<RunFolder> folder)
      : config_(config), folder_(std::move(folder)) {}
  absl::Status Prepare(const std::string& printed_config);
  absl::Status CheckResumable(const std::string& printed_config);
  void Introduce(const std::string& compute, int threads) const;
  void Step();
  std::string AccumulateGradient(StepLine* line);
  void MaybeValidate(bool last);
  std::vector<std::string> Samples() const;
  absl::Status SaveState();
  absl::Status SaveCheckpoint(const std::string& path) const;
  void SaveDuringTraining();
  absl::Status SaveAtTheEnd();
  std::map<std::string, std::string> Metadata() const;

  const Config config_;
  const std::unique_ptr<RunFolder> folder_;
  Task task_;
  Progress progress_;
  Schedule schedule_;
  std::unique_ptr<Rwkv7> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Reporter> reporter_;
  std::string result_;
};

}  // namespace skein::trainer
