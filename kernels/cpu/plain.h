#pragma once
// Every operator as a loop that reads like its formula: the specification. Memory is fp32 as ops.h
// says; S (float or double) is the type of the arithmetic. The float instances are the tier
// "plain"; tests compare every tier with the double instances. Weights are packed row-major by
// plain::Pack.

#include "kernels/ops.h"

namespace skein::kernels {

namespace plain {

int64_t PackedBytes(int32_t O, int32_t K, DType dtype);
void Pack(const PackParams& p, Stream& stream);

template <typename S>
void Embed(const EmbedParams& p);
template <typename S>
void AddNormMix(const AddNormMixParams& p);
template <typename S>
void FinalNorm(const FinalNormParams& p);
// Outputs [begin, end) of all O.
template <typename S>
void Matmul(const MatmulParams& p, int64_t begin, int64_t end);
template <typename S>
void Prepare(const PrepareParams& p);
// Row-and-head pairs [begin, end) of all R * H.
template <typename S>
void Wkv7(const Wkv7Params& p, int64_t begin, int64_t end);
template <typename S>
void NormBonusGate(const NormBonusGateParams& p);
// S = double only: every tier scores with ScoreRows (sampler.h), whose sums are double.
template <typename S>
void Score(const ScoreParams& p);

}  // namespace plain

const OpTable& PlainOps();

}  // namespace skein::kernels
