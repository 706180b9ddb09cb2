#pragma once
// The tier's own product of fp32 matrices rounded to bf16, on tensors.

#include <ATen/core/Tensor.h>

namespace skein::kernels {

// Whether the tier has one for tensors of this type: where it has none, LibTorch's is as fast.
bool HasTierProduct(at::ScalarType type);

// c = a b + bias (which may be undefined). a [M, K], b [K, N], both contiguous or the transposition
// of what is; bias [N]; c [M, N] contiguous.
void TierProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& bias,
                 const at::Tensor& c);
// c += a b
void AddTierProduct(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c);

}  // namespace skein::kernels
