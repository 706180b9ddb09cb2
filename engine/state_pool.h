#pragma once
// Device slots, one recurrent state each: [slot][state_floats]. Rows are never moved. A free slot
// still holds the state that was in it until somebody else needs the slot, so a conversation that
// goes on soon finds it there. Engine thread only.

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/store/types.h"
#include "kernels/device.h"

namespace skein::engine {

class StatePool {
 public:
  // RESOURCE_EXHAUSTED when the device has no memory for it; says how many bytes were asked for.
  static absl::StatusOr<std::unique_ptr<StatePool>> Create(kernels::Device& device, int32_t slots,
                                                           int64_t state_floats);

  // A free slot, its contents undefined; -1 when all are taken. Those that hold nothing go first,
  // then the one released longest ago.
  int32_t Acquire();
  // `holds`: what the slot's contents are a copy of, bit by bit; null: nothing worth to find again.
  // The host copy is the one that counts: nothing is written back when the slot is taken.
  void Release(int32_t slot, const std::shared_ptr<const StateSnapshot>& holds = nullptr);
  // Right after Acquire: exchanges `slot` for a free one that still holds this state. Returns
  // `slot` itself when that holds it already, -1 when none does.
  int32_t FindHolding(int32_t slot, const StateSnapshot& snapshot);

  // Ordered on `stream`; host memory must stay alive until then. Spans have state_floats() floats.
  void Zero(int32_t slot, kernels::Stream& stream);
  void CopyIn(int32_t slot, std::span<const float> state, kernels::Stream& stream);
  void CopyOut(int32_t slot, std::span<float> state, kernels::Stream& stream) const;
  void Copy(int32_t to, int32_t from, kernels::Stream& stream);

  float* base() const { return buffer_.as<float>(); }
  int64_t state_floats() const { return state_floats_; }
  int32_t slots() const { return slots_; }
  int32_t used() const { return slots_ - static_cast<int32_t>(free_.size()); }

 private:
  StatePool(kernels::Device& device, kernels::Buffer buffer, int32_t slots, int64_t state_floats);
  float* At(int32_t slot) const { return base() + int64_t{slot} * state_floats_; }
  size_t bytes() const { return static_cast<size_t>(state_floats_) * sizeof(float); }

  kernels::Device& device_;
  const kernels::Buffer buffer_;
  const int32_t slots_;
  const int64_t state_floats_;
  std::deque<int32_t> free_;  // the last one is handed out first
  std::vector<bool> taken_;
  // By slot, while it is free, and until FindHolding or the next Release. Not owned: the store
  // decides how long a state is kept.
  std::vector<std::weak_ptr<const StateSnapshot>> holds_;
};

}  // namespace skein::engine
