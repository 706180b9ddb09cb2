#include "trainer/compute.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <cpuid.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_format.h"
#include "kernels/cpu/host_limits.h"
#include "kernels/torch_ops.h"

namespace skein::trainer {
namespace {

bool HasAmxBf16() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 22 & 1) != 0;
}

double Seconds(const at::Tensor& x, const at::Tensor& w, bool bf16) {
  const auto start = std::chrono::steady_clock::now();
  kernels::Linear(x, w, bf16);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int SetUpThreads(int64_t threads) {
  const int n = threads > 0 ? static_cast<int>(threads) : kernels::UsableThreads();
  at::set_num_threads(n);
  at::globalContext().setFlushDenormal(true);
  at::parallel_for(0, n, 1, [](int64_t, int64_t) { at::globalContext().setFlushDenormal(true); });
  return n;
}

ComputeChoice ChooseCompute(const std::string& wanted, int64_t rows, int64_t C) {
  if (wanted != "auto") return {wanted == "bf16", wanted + " (train.compute)"};
  if (!__builtin_cpu_supports("avx512bf16") && !HasAmxBf16()) {
    return {false, "fp32 (auto: the processor has neither AVX512-BF16 nor AMX)"};
  }
  c10::AutoGradMode off(false);
  const at::Tensor x = at::ones({std::min<int64_t>(rows, 4096), C}), w = at::ones({4 * C, C});
  double fp32 = 1e30, bf16 = 1e30;
  for (int i = 0; i < 30; ++i) {  // by turns, so that a busy machine disturbs both alike
    fp32 = std::min(fp32, Seconds(x, w, false));
    bf16 = std::min(bf16, Seconds(x, w, true));
  }
  if (bf16 < fp32)
    return {true, absl::StrFormat("bf16 (auto: measured %.2f times as fast as fp32)", fp32 / bf16)};
  return {false, absl::StrFormat("fp32 (auto: bf16 measured %.2f times as slow)", bf16 / fp32)};
}

}  // namespace skein::trainer
