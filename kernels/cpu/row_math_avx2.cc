// Compiled without fused multiply-adds, so that its results are those of row_math.cc.

#include "kernels/cpu/row_math.h"

namespace skein::kernels {
namespace {
constexpr int kLanes = 8;
}
}  // namespace skein::kernels

#include "kernels/cpu/row_math_body.h"

namespace skein::kernels::avx2 {

const RowMath* FastRowMath() { return &kMath; }

}  // namespace skein::kernels::avx2
