#pragma once
// Where a run's figures go: the screen, log.jsonl, TensorBoard. A log that cannot be written is
// said once and does not stop the training.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "trainer/config.h"
#include "trainer/progress.h"
#include "trainer/run_folder.h"
#include "trainer/tensorboard.h"

namespace skein::trainer {

struct ValidationReport {
  int64_t step = 0;
  double loss = 0, bits_per_byte = 0;
  double seconds = 0;  // that this process has trained, this validation included
  double recall = -1;  // of the demo; -1: none
  bool best = false;
  std::vector<std::string> samples;
};

class Reporter {
 public:
  // `folder` outlives the reporter. What its log says of steps after `first_step` is forgotten:
  // they are about to be made again. No folder: a process whose lead reports; it says nothing.
  Reporter(const LogConfig& config, RunFolder* folder, int64_t first_step);
  void Step(const StepLine& line, int64_t tokens_seen);
  void Skipped(int64_t step, const std::string& reason);
  void Validation(const ValidationReport& report);
  void Print(const std::string& text);
  void Finish();

 private:
  absl::Status CutLog(int64_t step);
  void Write(const std::string& json);
  void Scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);
  void Complain(const absl::Status& status);

  const LogConfig config_;
  RunFolder* const folder_;
  ProgressBar bar_;
  std::unique_ptr<EventWriter> events_;
  bool complained_ = false;
};

}  // namespace skein::trainer
