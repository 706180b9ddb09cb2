#include "engine/state_pool.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"

namespace skein::engine {

absl::StatusOr<std::unique_ptr<StatePool>> StatePool::Create(kernels::Device& device, int32_t slots,
                                                             int64_t state_floats) {
  if (slots < 1)
    return absl::InvalidArgumentError(absl::StrCat("slots is ", slots, "; at least 1"));
  const size_t bytes =
      static_cast<size_t>(slots) * static_cast<size_t>(state_floats) * sizeof(float);
  kernels::Buffer buffer(device, bytes);
  if (!buffer) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no device memory for ", slots, " state slots of ", state_floats * 4,
                     " bytes (", bytes, " bytes in all); lower the number of slots"));
  }
  return std::unique_ptr<StatePool>(new StatePool(device, std::move(buffer), slots, state_floats));
}

StatePool::StatePool(kernels::Device& device, kernels::Buffer buffer, int32_t slots,
                     int64_t state_floats)
    : device_(device),
      buffer_(std::move(buffer)),
      slots_(slots),
      state_floats_(state_floats),
      taken_(slots, false),
      holds_(slots) {
  for (int32_t slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
}

int32_t StatePool::Acquire() {
  if (free_.empty()) return -1;
  const int32_t slot = free_.back();
  free_.pop_back();
  taken_[slot] = true;
  return slot;
}

void StatePool::Release(int32_t slot, const std::shared_ptr<const StateSnapshot>& holds) {
  SKEIN_CHECK(slot >= 0 && slot < slots_ && taken_[slot]);
  taken_[slot] = false;
  holds_[slot] = holds;
  if (holds != nullptr) {
    free_.push_front(slot);
  } else {
    free_.push_back(slot);
  }
}

int32_t StatePool::FindHolding(int32_t slot, const StateSnapshot& snapshot) {
  SKEIN_CHECK(taken_[slot]);
  const auto holds = [&](int32_t s) { return holds_[s].lock().get() == &snapshot; };
  if (holds(slot)) {
    holds_[slot].reset();  // whoever has the slot changes what is in it
    return slot;
  }
  const auto it = std::find_if(free_.begin(), free_.end(), holds);
  if (it == free_.end()) {
    holds_[slot].reset();
    return -1;
  }
  const int32_t found = *it;
  free_.erase(it);
  taken_[found] = true;
  holds_[found].reset();
  taken_[slot] = false;
  free_.push_back(slot);  // the next one to go: its state, if it has one, is the oldest
  return found;
}

void StatePool::Zero(int32_t slot, kernels::Stream& stream) {
  SKEIN_CHECK(taken_[slot]);
  device_.Zero(At(slot), bytes(), stream);
}

void StatePool::CopyIn(int32_t slot, std::span<const float> state, kernels::Stream& stream) {
  SKEIN_CHECK(taken_[slot] && static_cast<int64_t>(state.size()) == state_floats_);
  device_.CopyToDevice(At(slot), state.data(), bytes(), stream);
}

void StatePool::CopyOut(int32_t slot, std::span<float> state, kernels::Stream& stream) const {
  SKEIN_CHECK(taken_[slot] && static_cast<int64_t>(state.size()) == state_floats_);
  device_.CopyToHost(state.data(), At(slot), bytes(), stream);
}

void StatePool::Copy(int32_t to, int32_t from, kernels::Stream& stream) {
  SKEIN_CHECK(taken_[to] && taken_[from] && to != from);
  device_.CopyOnDevice(At(to), At(from), bytes(), stream);
}

}  // namespace skein::engine
