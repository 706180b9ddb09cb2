#pragma once
// Everything that a run needs to go on as if it had never stopped, in one atomically written file:
// master weights, both moments, the counters. Sampling, dropout and the learning rate are functions
// of the step and the config, so there is no generator to save.

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/optimizer.h"
#include "trainer/parameters.h"

namespace skein::trainer {

struct Progress {
  int64_t step = 0;  // steps done, skipped ones too; also the sampler's cursor (samples = step *
                     // batch * accumulate)
  int64_t tokens_seen = 0;
  double best_loss = 0;  // of the validation; 0: none yet
  int64_t best_step = 0;
  bool compute_bf16 = false;  // what `auto` decided when the run began
  std::string config;         // printed
};

absl::Status SaveTrainingState(const std::string& path, const Progress& progress,
                               const Parameters& parameters, Optimizer& optimizer);

// The counters only, to build the model before its weights are read.
absl::StatusOr<Progress> ReadProgress(const std::string& path);

// INVALID_ARGUMENT when the file belongs to a model of another shape.
absl::Status LoadTrainingState(const std::string& path, Parameters* parameters,
                               Optimizer* optimizer);

}  // namespace skein::trainer
