#pragma once
// One parallel region of an operator. What is inline has internal linkage on purpose: see
// number_format.h.

#include <xmmintrin.h>

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "kernels/device.h"

namespace skein::kernels {
namespace {

// Denormals are flushed on every thread while it runs an operator, whoever owns the thread; the
// caller's own setting comes back at the end.
class DenormalsScope {
 public:
  DenormalsScope() : saved_(_mm_getcsr()) {
    if ((saved_ & kFlush) != kFlush) _mm_setcsr(saved_ | kFlush);
  }
  ~DenormalsScope() {
    if ((saved_ & kFlush) != kFlush) _mm_setcsr(saved_);
  }
  DenormalsScope(const DenormalsScope&) = delete;
  DenormalsScope& operator=(const DenormalsScope&) = delete;

 private:
  static constexpr unsigned kFlush = 0x8040;  // flush-to-zero | denormals-are-zero
  unsigned saved_;
};

// Waking a thread costs about as much as this many nanoseconds of work; a smaller piece is not
// worth it.
constexpr int64_t kMinChunkNanoseconds = 3000;

// How many items of `nanoseconds` each make a piece that is worth a thread.
inline int64_t GrainFor(double nanoseconds) {
  const double items = kMinChunkNanoseconds / nanoseconds;
  return items < 1 ? 1 : static_cast<int64_t>(items) + 1;
}

// Uneven work laid out on a line: `count` items of `cost` units each, the first at `start`. Those
// that begin in a piece [begin, end) of the line belong to it.
struct ItemRange {
  int64_t first;
  int64_t last;
};
inline ItemRange ItemsIn(int64_t start, int64_t cost, int64_t count, int64_t begin, int64_t end) {
  int64_t first = begin > start ? (begin - start + cost - 1) / cost : 0;
  int64_t last = end > start ? (end - start + cost - 1) / cost : 0;
  if (last > count) last = count;
  if (first > last) first = last;
  return {first, last};
}

}  // namespace

// body(begin, end) over [0, n), cut by the executor into ranges of about `grain` items or more; on
// this thread alone when there is work for no other.
void ForRange(Stream& stream, int64_t n, int64_t grain,
              absl::FunctionRef<void(int64_t begin, int64_t end)> body);

}  // namespace skein::kernels
