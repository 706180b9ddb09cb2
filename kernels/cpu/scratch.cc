#include "kernels/cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace skein::kernels {
namespace {

struct Block {
  float* data = nullptr;
  int64_t floats = 0;
  ~Block() { std::free(data); }
};

}  // namespace

float* ThreadScratch(int64_t floats) {
  thread_local Block block;
  if (floats > block.floats) {
    std::free(block.data);
    block.floats = (floats + floats / 2 + 1023) / 1024 * 1024;
    block.data = static_cast<float*>(std::aligned_alloc(64, block.floats * sizeof(float)));
    if (block.data == nullptr) throw std::bad_alloc();
  }
  return block.data;
}

}  // namespace skein::kernels
