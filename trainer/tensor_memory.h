#pragma once
// Where the memory of tensors comes from. A training step takes the same sizes as the one before,
// and frees all of them; what malloc gives back to the system in between comes again as pages that
// have to be cleared, a fifth of a small model's step. Here a freed block waits for the next tensor
// of its size, and blocks lie in huge pages.

#include <cstdint>

namespace skein::trainer {

// For all tensors that this process makes from here on. Once, at the start; those made before keep
// their memory.
void UseTensorMemory();

// What tensors have taken from the system so far, for tests: constant once a program repeats
// itself.
int64_t TensorMemoryBytes();

}  // namespace skein::trainer
