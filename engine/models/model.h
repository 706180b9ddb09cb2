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

class PackedFile;  // engine/models/packed_file.h

// How far a load is, in bytes of the weights as they lie in memory.
struct LoadProgress {
  enum class Stage { kPacking, kReading, kWriting };  // the last two: of the packed file
  Stage stage = Stage::kPacking;
  int64_t done = 0, total = 0;

  double fraction() const { return total > 0 ? static_cast<double>(done) / total : 1; }
};

struct ModelOptions {
  DType weights = DType::kBF16;  // not kF16; int8 (rwkv7: of the large matrices)
  int32_t max_tokens = 512;      // of one step, all rows together
  int32_t max_rows = 64;         // of one step
  int32_t max_logits = 64;       // rows of logits of one step
  // Of loading, on the caller's thread; may be empty.
  std::function<void(const LoadProgress&)> progress;
  std::function<bool()> wanted = nullptr;  // any thread; false: loading ends with CANCELLED
  PackedFile* packed = nullptr;            // where packed weights are kept; null: nowhere
  // Prompts by OpTable::wkv7_chunked, where the device has it: what comes of them then depends, in
  // the last bits, on how they are cut into steps.
  bool chunked_wkv = false;
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
