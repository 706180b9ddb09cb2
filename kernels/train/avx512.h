#pragma once
// The AVX-512 and AMX tiers by name, where they differ from AVX2; see train_ops.h. To be called
// only where FindTier finds the tier.

#include "kernels/train/train_ops.h"

namespace skein::kernels::train {

void Avx512Wkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end);
void Avx512Wkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end);

void AmxWkv7(const Wkv7Forward<float>& p, int64_t begin, int64_t end);
// w_raw holds the decays w themselves. N is a multiple of 32, there are no resets; final_state may
// be state.
void AmxWkv7OfDecays(const Wkv7Forward<float>& p, int64_t begin, int64_t end);
void AmxWkv7Grad(const Wkv7Backward<float>& q, int64_t begin, int64_t end);
void AmxProduct(const ProductArgs& p, int64_t begin, int64_t end);

}  // namespace skein::kernels::train
