#pragma once
// Generation inside the trainer, for samples and the recall test: rows advance in lockstep, one
// token a step, each from its own recurrent state, turn by turn as the server would feed them.

#include <cstdint>
#include <vector>

#include "trainer/models/rwkv7.h"

namespace skein::trainer {

// A row's turns: what is fed before each answer. An answer's stop token is not fed; the next turn
// brings it, if at all.
using Script = std::vector<std::vector<int32_t>>;

struct GenerateOptions {
  int64_t max_tokens = 100;  // of each answer
  double temperature = 0;    // 0: greedy
  uint64_t seed = 0;
  std::vector<int32_t> stop_tokens;  // id 0 always stops
  int32_t vocab = 0;                 // ids from here on are never taken
};

// answers[row][turn] -> tokens. Every turn needs at least one token.
std::vector<Script> Generate(const Rwkv7& model, const std::vector<Script>& scripts,
                             const GenerateOptions& options);

}  // namespace skein::trainer
