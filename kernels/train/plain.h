#pragma once
// The plain loops by name; see train_ops.h for what each computes. Instantiated for float and
// double.

#include "kernels/train/train_ops.h"

namespace skein::kernels::train {

template <class Real>
void PlainAddNormMix(const AddNormMixForward<Real>& p, int64_t begin, int64_t end);
template <class Real>
void PlainAddNormMixGrad(const AddNormMixBackward<Real>& p, int64_t begin, int64_t end,
                         Real* partial);
template <class Real>
void PlainPrepare(const PrepareForward<Real>& p, int64_t begin, int64_t end);
template <class Real>
void PlainPrepareGrad(const PrepareBackward<Real>& p, int64_t begin, int64_t end, Real* partial);
template <class Real>
void PlainNormBonusGate(const NormBonusGateForward<Real>& p, int64_t begin, int64_t end);
template <class Real>
void PlainNormBonusGateGrad(const NormBonusGateBackward<Real>& q, int64_t begin, int64_t end,
                            Real* partial);
template <class Real>
void PlainCrossEntropy(const CrossEntropyArgs<Real>& p, int64_t begin, int64_t end);
template <class Real>
void PlainReluSquared(const Real* x, Real* out, int64_t begin, int64_t end);
template <class Real>
void PlainReluSquaredGrad(const Real* x, const Real* d_out, Real* d_x, int64_t begin, int64_t end);
void PlainAdamW(const AdamWArgs& p, int64_t begin, int64_t end);
void PlainProduct(const ProductArgs& p, int64_t begin, int64_t end);

// WKV-7 step by step, the specification: forward fills y and final_state (chunk_states and sa only
// if not null); backward reads the inputs alone and keeps every state, T N^2 numbers per head.
template <class Real>
void RecurrentWkv7(const Wkv7Forward<Real>& p, int64_t begin, int64_t end);
template <class Real>
void RecurrentWkv7Grad(const Wkv7Backward<Real>& q, int64_t begin, int64_t end);

// The chunked form (wkv7_chunk.h) with plain loops for its matrix products.
template <class Real>
void ChunkedWkv7(const Wkv7Forward<Real>& p, int64_t begin, int64_t end);
template <class Real>
void ChunkedWkv7Grad(const Wkv7Backward<Real>& q, int64_t begin, int64_t end);

}  // namespace skein::kernels::train
