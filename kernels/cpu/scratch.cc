#include "kernels/cpu/scratch.h"

#include <new>

namespace skein::kernels {
namespace {

constexpr std::align_val_t kAlignment{64};

struct Block {
  float* data = nullptr;
  int64_t floats = 0;
  ~Block() { Free(); }
  void Free() { ::operator delete(data, kAlignment); }
};

}  // namespace

float* ThreadScratch(int64_t floats) {
  thread_local Block block;
  if (floats > block.floats) {
    block.Free();
    block.data = nullptr;
    block.floats = 0;
    const int64_t grown = floats + floats / 2 + 1024;
    block.data = static_cast<float*>(::operator new(grown * sizeof(float), kAlignment));
    block.floats = grown;
  }
  return block.data;
}

}  // namespace skein::kernels
