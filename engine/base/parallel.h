#pragma once
// Threads for work of seconds, such as loading a model. (A step of a model has its device's pool.)

#include <cstdint>

#include "absl/functional/function_ref.h"

namespace skein::base {

// Calls body(i) for every i in [0, n), the lower ones first, on at most `threads` threads of which
// the caller is one. Returns when all are done.
void ParallelFor(int threads, int64_t n, absl::FunctionRef<void(int64_t i)> body);

}  // namespace skein::base
