#pragma once
// A model on one device: weights packed for the device's tier, one Step over a ragged batch. One
// file per RWKV version implements it. Used by one thread (the engine's); nothing is allocated
// after construction.

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "engine/checkpoint.h"
#include "engine/model_config.h"
#include "kernels/device.h"
#include "kernels/ops.h"

namespace skein::engine {

struct ModelOptions {
  DType weights = DType::kBF16;                   // not kF16; int8 (rwkv7: of the large matrices)
  int32_t max_tokens = 512;                       // of one step, all rows together
  int32_t max_rows = 64;                          // of one step
  int32_t max_logits = 64;                        // rows of logits of one step
  std::function<void(double fraction)> progress;  // of loading; may be empty
  std::function<bool()> wanted = nullptr;         // false: loading ends with CANCELLED
};

// One step's work, host memory. Row r owns tokens [offsets[r], offsets[r+1]) and the state in
// slots[r].
struct StepBatch {
  std::span<const int32_t> tokens;     // [T], ids in [0, V)
  std::span<const int32_t> offsets;    // [R+1]
  std::span<const int32_t> slots;      // [R], distinct
  std::span<const int32_t> logits_of;  // [n] indices of tokens whose logits are wanted, ascending
};

class Model {
 public:
  virtual ~Model() = default;
  static absl::StatusOr<std::unique_ptr<Model>> Load(const Checkpoint& checkpoint,
                                                     kernels::Device& device,
                                                     const ModelOptions& options);
  virtual const ModelConfig& config() const = 0;
  virtual int64_t weight_bytes() const = 0;
  // Advances the states of all rows in place by their tokens. states: device memory, slot s at
  // s * config().state_floats() floats, per layer [time-mix shift C][S H*N*N][channel-mix shift C].
  // Returns device memory [n, V], valid until the next Step.
  virtual const float* Step(const StepBatch& batch, float* states, kernels::Stream& stream) = 0;
};

}  // namespace skein::engine
