#pragma once
#include <cstdint>

namespace skein::kernels {

// Working memory of the calling thread: 64-byte aligned, not cleared, at least `floats` long, the
// same block at every call. It grows when it must (warm-up) and is kept until the thread ends.
float* ThreadScratch(int64_t floats);

}  // namespace skein::kernels
