#pragma once
// What a training run is told: one YAML file, every key known, every value checked.
// trainer/configs/ has examples.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/base/strict_yaml.h"

namespace skein::trainer {

struct RunConfig {
  std::string folder = "runs/run";
  std::string resume = "never";  // never | auto (when there is something to resume) | always
  std::string output;            // empty: only the run folder's last.safetensors
};

struct ModelOptions {
  int64_t layers = 4, width = 128, head_size = 64;
  int64_t rank_w = 0, rank_a = 0, rank_v = 0, rank_g = 0;  // 0: from the width
  double dropout = 0;
  std::string init_from;  // a checkpoint to continue from; its sizes replace the ones above
};

struct DataConfig {
  std::string kind = "auto";  // auto | text | jsonl | binidx | recall-demo
  std::string train;
  std::string validation;
  double validation_fraction = 0.1;
  std::string tokenizer = "auto";  // auto | bytes | path of a World-format vocabulary
  std::string sampler = "auto";
  double user_weight = 0, assistant_weight = 1;  // of messages
  bool document_reset = false;
};

struct TrainConfig {
  int64_t context = 512, batch = 16, accumulate = 1, steps = 1000, warmup = 10, seed = 1;
  double lr = 6e-4, lr_final = 6e-5, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.99, eps = 1e-18;
  double clip = 1.0, l2wrap = 1e-4;
  std::string compute = "auto";  // auto | bf16 | fp32
  int64_t threads = 0;           // 0: as many as the process may use
};

struct EvaluateConfig {
  int64_t every = 250;         // steps; 0: only at the end
  int64_t max_windows = 1000;  // 0: all
  int64_t samples = 1, sample_tokens = 100;
  double temperature = 0.8;
  std::string prompt;
};

struct SaveConfig {
  int64_t every = 500;      // steps between resumable states; 0: only at the end
  bool keep_every = false;  // also keep step-N.safetensors each time
  bool best = true;
  bool initial = false;        // initial.safetensors before the first step
  bool pth = false;            // last.pth beside last.safetensors
  std::string dtype = "fp32";  // fp32 | bf16
};

struct LogConfig {
  int64_t every = 10;
  bool tensorboard = true;
};

struct Config {
  RunConfig run;
  ModelOptions model;
  DataConfig data;
  TrainConfig train;
  EvaluateConfig evaluate;
  SaveConfig save;
  LogConfig log;
};

// The table of keys; `config` must outlive it.
void Describe(Config* config, base::YamlSchema* schema);

// What no single key can say: combinations.
absl::Status Validate(const Config& config);

// The lines of two printed configs that differ and change what is computed (not run.*, log.*, ...):
// a resumed run must have none.
std::vector<std::string> IncompatibleChanges(const std::string& saved, const std::string& now);

}  // namespace skein::trainer
