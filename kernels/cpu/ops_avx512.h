#pragma once
// What the tiers above AVX2 have of their own; the rest of their tables is AVX2's. Each namespace
// is compiled with its own flags and called only where the machine has them.

#include "kernels/ops.h"

namespace skein::kernels {

// AVX-512 F, BW, DQ, VL: fp32 multiply-adds. Weights stand in panels of 32 outputs. The operators
// of a head are those of AVX2 in vectors of twice the width.
namespace avx512 {
int64_t PackedBytes(int32_t O, int32_t K, DType dtype);
void Pack(const PackParams& p, Stream& stream);
void Matmul(const MatmulParams* params, int n, Stream& stream);
void Prepare(const PrepareParams& p, Stream& stream);
void Wkv7(const Wkv7Params& p, Stream& stream);
void NormBonusGate(const NormBonusGateParams& p, Stream& stream);
}  // namespace avx512

// And AVX512-BF16 and VNNI: bf16 and int8 weights by dot products of pairs, W8A8 of fours.
namespace avx512bf16 {
int64_t PackedBytes(int32_t O, int32_t K, DType dtype);
void Pack(const PackParams& p, Stream& stream);
void Matmul(const MatmulParams* params, int n, Stream& stream);
}  // namespace avx512bf16

// And AMX tiles of bf16 and int8, for which the process needs the system's permission (tiers.cc
// asks).
namespace amx {
int64_t PackedBytes(int32_t O, int32_t K, DType dtype);
void Pack(const PackParams& p, Stream& stream);
void Matmul(const MatmulParams* params, int n, Stream& stream);
void Wkv7Chunked(const Wkv7Params& p, Stream& stream);
}  // namespace amx

}  // namespace skein::kernels
