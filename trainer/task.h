#pragma once
// What is learnt: tokenizer, batches, validation, and what the checkpoint's metadata says about
// them.

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"
#include "engine/tokenizer.h"
#include "trainer/batches.h"
#include "trainer/config.h"
#include "trainer/models/rwkv7.h"

namespace skein::trainer {

struct Task {
  std::unique_ptr<engine::Tokenizer> tokenizer;
  std::unique_ptr<BatchSource> source;          // of training
  TokenStream train_tokens, validation_tokens;  // empty for the demo
  bool demo = false;
  int64_t V = 0;                                // rows of embedding and head
  std::map<std::string, std::string> metadata;  // skein.* of the checkpoint
  std::string vocabulary_file;  // too large for the metadata: skeind needs it; empty: it does not
  std::string description;      // one line for the user

  // Batches of B. full: all windows; else at most evaluate.max_windows. Empty: there is nothing to
  // validate on.
  std::vector<Batch> Validation(const Config& config, bool full, int64_t B) const;
};

// `init`: the checkpoint to continue from, or null; its tokenizer and metadata are the defaults.
absl::StatusOr<Task> MakeTask(const Config& config, const engine::Checkpoint* init);

}  // namespace skein::trainer
