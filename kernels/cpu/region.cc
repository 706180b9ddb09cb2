#include "kernels/cpu/region.h"

namespace skein::kernels {

void ForRange(Stream& stream, int64_t n, int64_t grain,
              absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (n <= 0) return;
  const DenormalsScope here;
  Executor& executor = stream.executor();
  if (n < 2 * grain || executor.num_threads() == 1) {
    body(0, n);
    return;
  }
  executor.ParallelFor(n, grain, [body](int64_t begin, int64_t end) {
    const DenormalsScope there;
    body(begin, end);
  });
}

}  // namespace skein::kernels
