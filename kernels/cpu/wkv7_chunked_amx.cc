// WKV-7 of prompts with its products on AMX tiles, as the trainer has it
// (kernels/train/wkv7_amx.cc).

#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/ops_avx512.h"
#include "kernels/cpu/time_mix_body.h"
#include "kernels/train/avx512.h"

namespace skein::kernels::amx {
namespace {

// Some heads of one row of the batch.
void ChunkHeads(const Wkv7Params& p, int64_t row, int64_t first, int64_t last) {
  const int64_t begin = p.batch.offsets[row], at = begin * p.H * p.N;
  float* state = p.state.base + p.batch.slots[row] * p.state.stride;
  train::Wkv7Forward<float> f;
  f.B = 1;
  f.T = p.batch.offsets[row + 1] - begin;
  f.H = p.H;
  f.N = p.N;
  f.r = p.r + at;
  f.w_raw = p.w + at;
  f.k = p.k + at;
  f.v = p.v + at;
  f.a = p.a + at;
  f.b = p.b + at;
  f.state = f.final_state = state;
  f.y = p.y + at;
  train::AmxWkv7OfDecays(f, first, last);
}

}  // namespace

void Wkv7Chunked(const Wkv7Params& p, Stream& stream) {
  ForHeads(p, stream, [&p](int64_t row, int64_t first, int64_t last) {
    const int64_t tokens = p.batch.offsets[row + 1] - p.batch.offsets[row];
    if (tokens >= train::kChunk && p.N % 32 == 0) return ChunkHeads(p, row, first, last);
    for (int64_t head = first; head < last; ++head) RunHead<Zmm>(p, row, head);
  });
}

}  // namespace skein::kernels::amx
