#pragma once
// Threads and the type of matrix products, chosen once at the start.

#include <cstdint>
#include <string>

namespace skein::trainer {

// Sets LibTorch's threads (0: all that the process may use) and flushes denormals on each of them.
// Returns how many.
int SetUpThreads(int64_t threads);

struct ComputeChoice {
  bool bf16 = false;
  std::string reason;  // one line for the user
};

// wanted: "auto", "bf16" or "fp32". auto takes bf16 only where the processor has AVX512-BF16 or AMX
// and a measured product [rows, C] x [C, 4C], casts included, is faster with it.
ComputeChoice ChooseCompute(const std::string& wanted, int64_t rows, int64_t C);

}  // namespace skein::trainer
