#pragma once
// The AVX2 tier by name; see train_ops.h. To be called only where cpuid shows AVX2 and FMA.

#include "kernels/train/train_ops.h"

namespace skein::kernels::train {

void Avx2AddNormMix(const AddNormMixForward<float>& p, int64_t begin, int64_t end);
void Avx2AddNormMixGrad(const AddNormMixBackward<float>& p, int64_t begin, int64_t end,
                        float* partial);
void Avx2Prepare(const PrepareForward<float>& p, int64_t begin, int64_t end);
void Avx2PrepareGrad(const PrepareBackward<float>& p, int64_t begin, int64_t end, float* partial);
void Avx2Wkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end);
void Avx2Wkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end);
void Avx2NormBonusGate(const NormBonusGateForward<float>& p, int64_t begin, int64_t end);
void Avx2NormBonusGateGrad(const NormBonusGateBackward<float>& q, int64_t begin, int64_t end,
                           float* partial);
void Avx2CrossEntropy(const CrossEntropyArgs<float>& p, int64_t begin, int64_t end);
void Avx2ReluSquared(const float* x, float* out, int64_t begin, int64_t end);
void Avx2ReluSquaredGrad(const float* x, const float* d_out, float* d_x, int64_t begin,
                         int64_t end);
void Avx2AdamW(const AdamWArgs& p, int64_t begin, int64_t end);

}  // namespace skein::kernels::train
