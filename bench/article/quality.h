#pragma once
// The article's third table: Skein's RWKV-7 and the transformer learn the same text from the same
// windows, with as many parameters, the same optimiser and the same number of tokens; then the
// recall demo. Curves of validation loss over tokens and over seconds of training (validation not
// counted).

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace skein::article {

struct QualityOptions {
  std::string text;  // any file; the last tenth validates
  int64_t text_steps = 1000, demo_steps = 2200, evaluations = 10;
  int64_t windows = 300;  // of the validation text, at each evaluation
  int64_t passages = 1000, dialogues = 150;
  double trial_seconds = 1;  // of each type of products, before training
  // Of 1e-3, 2e-3 and 4e-3 over 300 steps the transformer learns best with 2e-3; RWKV-7 with 4e-3,
  // but 2e-3 is what the recipes in trainer/configs have.
  double rwkv_lr = 2e-3, transformer_lr = 2e-3;
};

struct CurvePoint {
  int64_t tokens = 0;
  double seconds = 0, loss = 0;
};

struct Accuracy {
  int64_t asked = 0, right = 0;
  double rate() const {
    return asked > 0 ? static_cast<double>(right) / static_cast<double>(asked) : 0;
  }
};

struct Learned {  // by one model
  std::string name, compute;
  int64_t parameters = 0, demo_parameters = 0;
  std::vector<CurvePoint> curve;  // of the text
  Accuracy last_word;             // all letters of a passage's last word the most probable ones
  Accuracy last_word_repeated;    // those words that the passage has held before
  double demo_seconds = 0;
  Accuracy recall;  // questions about held-out values, every token of the answer the most probable
};

struct Quality {
  std::string description;
  std::vector<Learned> models;
};

// Errors: the text cannot be read or is too short.
absl::StatusOr<Quality> CompareQuality(const QualityOptions& options);

}  // namespace skein::article
