#pragma once
// Where the memory of tensors comes from. A training step takes the same sizes as the one before,
// and frees all of them. Here a freed block waits for the next tensor of its size, which finds it
// in the cache, and nothing goes back to the system, whose pages have to be cleared; blocks lie in
// huge pages.

#include <cstdint>

namespace skein::trainer {

// For all tensors that this process makes from here on. Once, at the start; those made before keep
// their memory.
void UseTensorMemory();

// What tensors have taken from the system so far, for tests: constant once a program repeats
// itself.
int64_t TensorMemoryBytes();

}  // namespace skein::trainer
