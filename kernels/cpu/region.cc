#include "kernels/cpu/region.h"

#include <algorithm>

namespace skein::kernels {

void ForRange(Stream& stream, int64_t n, int64_t grain,
              absl::FunctionRef<void(int64_t begin, int64_t end)> body) {
  if (n <= 0) return;
  const DenormalsScope here;
  Executor& executor = stream.executor();
  const int64_t pieces = std::min<int64_t>(n / grain, executor.num_threads());
  if (pieces <= 1) {
    body(0, n);
    return;
  }
  executor.ParallelFor(n, (n + pieces - 1) / pieces, [body](int64_t begin, int64_t end) {
    const DenormalsScope there;
    body(begin, end);
  });
}

}  // namespace skein::kernels
