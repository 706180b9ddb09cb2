#pragma once
// The AVX2 tier by name; see train_ops.h. To be called only where cpuid shows AVX2 and FMA.

#include "kernels/train/train_ops.h"

namespace skein::kernels::train {

void Avx2Wkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end);
void Avx2Wkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end);

}  // namespace skein::kernels::train
