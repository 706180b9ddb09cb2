#pragma once
// Products of matrices on tensors: LibTorch's, or of factors rounded to bf16 the tier's own, which
// reads fp32 and keeps fp32 sums (LibTorch's needs a copy of each factor in bf16, and rounds its
// result).

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace skein::kernels {

// Whether the tier has a product of its own for tensors of this type: where it has none, LibTorch's
// is as fast.
bool HasTierProduct(at::ScalarType type);

// A contiguous tensor [..., columns] as a matrix, or the transposition of that.
struct Factor {
  const at::Tensor& tensor;
  bool transposed = false;
  int64_t rows() const { return transposed ? last() : rest(); }
  int64_t columns() const { return transposed ? rest() : last(); }
  at::Tensor view() const;

 private:
  int64_t last() const { return tensor.size(-1); }
  int64_t rest() const { return tensor.numel() / std::max<int64_t>(last(), 1); }
};
inline Factor Transposed(const at::Tensor& t) { return {t, true}; }

// c = a b + bias (which may be undefined). c is contiguous; bf16 rounds both factors.
void Multiply(const Factor& a, const Factor& b, const at::Tensor& bias, bool bf16,
              const at::Tensor& c);
// c += a b
void AddProduct(const Factor& a, const Factor& b, bool bf16, const at::Tensor& c);

}  // namespace skein::kernels
