#pragma once
// The operators for AVX2 + FMA + F16C, compiled with those flags and called only where the machine
// has them. Nothing inline leaves an *_avx2.cc file: the linker may keep its copy for everyone.

#include "kernels/ops.h"

namespace skein::kernels::avx2 {

// Weights stand in panels of 16 outputs, [ceil(O/16)][K][16], the last panel filled with zeros.
int64_t PackedBytes(int32_t O, int32_t K, DType dtype);
void Pack(const PackParams& p, Stream& stream);
void Matmul(const MatmulParams* params, int n, Stream& stream);

void Embed(const EmbedParams& p, Stream& stream);
void AddNormMix(const AddNormMixParams& p, Stream& stream);
void FinalNorm(const FinalNormParams& p, Stream& stream);

void Prepare(const PrepareParams& p, Stream& stream);
void Wkv7(const Wkv7Params& p, Stream& stream);
void NormBonusGate(const NormBonusGateParams& p, Stream& stream);

}  // namespace skein::kernels::avx2
