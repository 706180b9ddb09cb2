#include "kernels/cpu/row_math.h"

namespace skein::kernels {
namespace {
constexpr int kLanes = 4;  // what every x86-64 has
}
}  // namespace skein::kernels

#include "kernels/cpu/row_math_body.h"

namespace skein::kernels {

const RowMath& PlainRowMath() { return kMath; }

RowSummary SummarizeRow(const RowMath& math, const float* x, int32_t n) {
  RowSummary s;
  s.max = math.max(x, n);
  s.has_nan = std::isnan(s.max);
  s.valid = std::isfinite(s.max);
  if (s.has_nan) return s;
  s.arg_max = math.find(x, n, s.max);
  if (s.valid) s.log_sum = std::log(math.sum_exp(x, n, s.max));
  return s;
}

}  // namespace skein::kernels
