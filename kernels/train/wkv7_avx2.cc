// The chunked WKV-7 with AVX2 products.

#include "kernels/train/wkv7_avx2.h"
#include "kernels/train/avx2.h"

namespace skein::kernels::train {

void Avx2Wkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end) {
  Wkv7Chunk<Avx2ChunkOps> chunk(p, false);
  for (int64_t task = begin; task < end; ++task) chunk.Forward(task);
}

void Avx2Wkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end) {
  Wkv7Chunk<Avx2ChunkOps> chunk(q.forward, true);
  for (int64_t task = begin; task < end; ++task) chunk.Backward(q, task);
}

}  // namespace skein::kernels::train
