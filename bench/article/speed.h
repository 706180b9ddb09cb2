#pragma once
// The article's first, second and fourth table: decode time, bytes of memory per conversation and
// tokens per second in batches, of Skein's RWKV-7 and of a transformer with a key-value cache, at
// the same context. Random weights of one shape (L12 C768 V65536, 191 M parameters each).

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace skein::article {

struct SpeedOptions {
  int threads = 0;    // 0: all that the process may use
  bool tiny = false;  // models of a few thousand parameters: whether the bench runs
  std::vector<int64_t> contexts = {512, 2048, 8192, 32768, 131072};
  std::vector<int64_t> batches = {1, 4, 16, 64};
  std::vector<int64_t> batch_contexts = {512, 8192};
  // Skein really reads that many tokens; beyond, it decodes from the state after the last of them.
  int64_t read_tokens = 32768;
  double seconds = 1;  // of each figure
};

// A figure, or the reason why there is none.
struct Cell {
  double value = 0;
  std::string missing;  // "out of memory: ..."
};

struct ContextRow {
  int64_t context = 0;
  bool simulated = false;                   // Skein's state is that of a shorter context
  Cell skein_seconds, transformer_seconds;  // of one decode step
  Cell skein_bytes, transformer_bytes;      // resident memory that one conversation added
};

struct BatchRow {
  int64_t context = 0, batch = 0;
  Cell skein, transformer;  // tokens per second
};

struct Speed {
  std::string skein, transformer;  // what was run, one line each
  double read_bytes_per_second = 0;
  double skein_floor_seconds = 0;  // of a decode step: its bytes at the read bandwidth
  double transformer_weight_bytes = 0;
  std::vector<ContextRow> contexts;
  std::vector<BatchRow> batches;
};

absl::StatusOr<Speed> CompareSpeed(const SpeedOptions& options);

}  // namespace skein::article
