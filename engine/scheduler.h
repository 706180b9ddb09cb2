#pragma once
// Decides what each step computes (who runs at all: admission.h). Pure: no device, thread or clock
// inside. Nothing is allocated by Plan after the largest number of rows has been seen.
//
// A step holds every decoding row (one token each) and prefill chunks in order of admission, so
// that the predicted time of the step stays under the target between two tokens. Some prefill
// always fits, so nobody starves; without decoding rows the target is several times as long.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "engine/step_cost.h"

namespace skein::engine {

struct SchedulerOptions {
  int32_t max_rows = 64;          // of one step
  int32_t max_step_tokens = 512;  // all rows of one step
  int32_t max_prefill_chunk = 256;
  int32_t max_logits = 64;  // rows of logits of one step
  absl::Duration target = absl::Milliseconds(50);
};

// What a running row could do in the next step.
struct RowDemand {
  int64_t remaining = 0;  // tokens known and not consumed; 0: nothing to do
  int64_t unscored = 0;   // of these, the first ones whose logits are not wanted
  bool blocked = false;   // paused, or without a slot
};

// Row `row` of the demands consumes its next `tokens` tokens.
struct StepShare {
  int32_t row = 0;
  int32_t tokens = 0;
};

class Scheduler {
 public:
  explicit Scheduler(const SchedulerOptions& options);

  // Overwrites *shares with the next step, in order of row; empty when no row can do anything.
  void Plan(std::span<const RowDemand> rows, std::vector<StepShare>* shares);
  void Learn(int32_t decode_rows, int32_t prefill_tokens, absl::Duration measured);
  const StepCost& cost() const { return cost_; }

 private:
  struct Room {
    int64_t rows, tokens, logits, prefill;
  };
  void AddDecodes(std::span<const RowDemand> rows, Room* room, std::vector<StepShare>* shares);
  void AddPrefill(std::span<const RowDemand> rows, Room* room, std::vector<StepShare>* shares);

  const SchedulerOptions options_;
  StepCost cost_;
  double aim_ = 1;     // the part of the target that prefill is planned for
  uint64_t turn_ = 0;  // rotates which decoding row comes first when they do not all fit
};

}  // namespace skein::engine
