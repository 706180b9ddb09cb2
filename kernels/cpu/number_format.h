#pragma once
// bf16 and fp16 to and from fp32, and reads of unaligned checkpoint bytes. Internal linkage on
// purpose: this header is compiled under several instruction sets, and no function may be shared
// between them.

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/ops.h"

namespace skein::kernels {
namespace {

inline uint32_t BitsOf(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

inline float FromBF16(uint16_t h) { return FloatOf(static_cast<uint32_t>(h) << 16); }

// To nearest, ties to even; a NaN stays a NaN.
inline uint16_t ToBF16(float f) {
  const uint32_t bits = BitsOf(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float FromF16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1fu;
  uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) return FloatOf(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    if (mantissa == 0) return FloatOf(sign);
    exponent = 1;  // subnormal: shift the leading one into place
    while ((mantissa & 0x400u) == 0) {
      mantissa <<= 1;
      --exponent;
    }
    mantissa &= 0x3ffu;
  }
  return FloatOf(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// int8 weights are symmetric, with one scale for each output and kGroupSize inputs: w = q * scale.
constexpr int64_t kGroupSize = 64;

// |x| when it is above `least`; of NaN, which stays, either.
inline float Larger(float least, float x) {
  const float size = FloatOf(BitsOf(x) & 0x7fffffffu);
  return size <= least || least != least ? least : size;
}

// The scale, as bf16 and not below largest / 127, so that no number lies beyond +-127. Infinity and
// NaN spoil their group, as they should.
inline uint16_t ScaleOf(float largest) {
  const float exact = largest / 127.0f;
  const uint16_t nearest = ToBF16(exact);
  return FromBF16(nearest) < exact ? static_cast<uint16_t>(nearest + 1) : nearest;
}

inline int8_t Quantize(float w, float scale) {
  const float q = w / scale;
  if (!(q >= -127.5f && q <= 127.5f)) return 0;  // 0 / 0 of an empty group; a spoilt one
  const float shifted = q + 12582912.0f;         // 1.5 * 2^23: rounds to a whole number
  return static_cast<int8_t>(shifted - 12582912.0f);
}

// W8A8: 64 numbers of x are q * unit with |q| <= 127. Infinity and NaN spoil their group; what lies
// below 1e-30 is zero.
struct Step8 {
  float unit, inverse;  // 1 / unit, or 0
};
inline Step8 StepOf(float largest) {
  if (!(largest <= 3.402823466e38f)) return {FloatOf(0x7fc00000u), 0.0f};
  if (largest < 1e-30f) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

// The bits of `depth` <= 64 numbers, filled up with zeros; those of the largest but for its sign.
inline uint32_t LoadGroup(const float* x, int64_t depth, uint32_t (&bits)[kGroupSize]) {
  if (depth == kGroupSize) {
    std::memcpy(bits, x, sizeof(bits));
  } else {
    std::memset(bits, 0, sizeof(bits));
    std::memcpy(bits, x, static_cast<size_t>(depth) * sizeof(float));
  }
  uint32_t largest = 0;
  for (const uint32_t b : bits) largest = (b & 0x7fffffffu) > largest ? b & 0x7fffffffu : largest;
  return largest;
}

// Makes `depth` <= 64 numbers whole, filled up with zeros; returns their unit. B::Quantize(x,
// inverse, q) rounds 64 products x * inverse.
template <class B>
float QuantizeInput(const float* x, int64_t depth, int8_t* q) {
  alignas(64) uint32_t bits[kGroupSize];
  const Step8 step = StepOf(FloatOf(LoadGroup(x, depth, bits)));
  alignas(64) float values[kGroupSize];
  std::memcpy(values, bits, sizeof(values));
  B::Quantize(values, step.inverse, q);
  return step.unit;
}

// With int8 weights alone x stays as exact as the weights deserve: 64 numbers, rounded to bf16, in
// fixed point of 14 bits and a sign, whose unit is the power of two that their largest needs. A
// bf16 down to 1/64 of the largest is held exactly; a smaller one is off by at most 1/2^14 of the
// largest, a small part of what rounding the weights to int8 takes from their product. Sums of 64
// products with weights stay exact in 32 bits: 64 * 127 * 2^14 < 2^31.
//
// Fills q up with zeros and returns the unit. Infinity and NaN spoil the group; what is so small
// that its unit would be a denormal is zero.
inline float ToFixedPoint(const float* x, int64_t depth, int16_t* q) {
  uint32_t bits[kGroupSize];
  const uint32_t largest = LoadGroup(x, depth, bits);
  std::memset(q, 0, kGroupSize * sizeof(*q));
  constexpr uint32_t kBits = 13, kBias = 127;
  if (largest >= 0x7f7f8000u) return FloatOf(0x7fc00000u);  // rounds to infinity, or is NaN
  for (uint32_t& b : bits) b = (b + 0x7fffu + ((b >> 16) & 1u)) & 0xffff0000u;  // to bf16
  const uint32_t exponent = (largest + 0x7fffu + ((largest >> 16) & 1u)) >> 23;
  if (exponent <= kBits) return 0.0f;
  const float inverse = FloatOf((2 * kBias + kBits - exponent) << 23);
  for (int64_t i = 0; i < kGroupSize; ++i) {
    constexpr float kWhole = 12582912.0f;  // 1.5 * 2^23: rounds to a whole number
    const float whole = (FloatOf(bits[i]) * inverse + kWhole) - kWhole;
    q[i] = static_cast<int16_t>(static_cast<int32_t>(whole));
  }
  return FloatOf((exponent - kBits) << 23);
}

// Element `i` of an array that may be unaligned.
inline float LoadElement(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) {
    float f;
    std::memcpy(&f, static_cast<const char*>(data) + 4 * i, 4);
    return f;
  }
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(data) + 2 * i, 2);
  return dtype == DType::kBF16 ? FromBF16(h) : FromF16(h);
}

// Element (o, k) of the matrix that `p` names, whichever way it is stored.
inline float LoadSource(const PackParams& p, int64_t o, int64_t k) {
  return LoadElement(p.source, p.source_dtype,
                     p.transposed ? k * p.O + o : (o - p.first) * p.K + k);
}

// n elements of output o from k on, n known to the compiler; zeros beyond the matrix.
template <int64_t n>
void LoadSourceRow(const PackParams& p, int64_t o, int64_t k, float* out) {
  if (o >= p.O || k + n > p.K || p.transposed) {
    for (int64_t i = 0; i < n; ++i)
      out[i] = o < p.O && k + i < p.K ? LoadSource(p, o, k + i) : 0.0f;
    return;
  }
  const auto load = [&](auto dtype) {
    constexpr DType kType = dtype;
    const int64_t at = (o - p.first) * p.K + k;
    for (int64_t i = 0; i < n; ++i) out[i] = LoadElement(p.source, kType, at + i);
  };
  switch (p.source_dtype) {
    case DType::kF32:
      return load(std::integral_constant<DType, DType::kF32>{});
    case DType::kBF16:
      return load(std::integral_constant<DType, DType::kBF16>{});
    default:
      return load(std::integral_constant<DType, DType::kF16>{});
  }
}

// The group of output o from k on, as whole numbers; what lies beyond the matrix is zero. Returns
// its scale.
[[maybe_unused]] inline uint16_t QuantizeWeights(const PackParams& p, int64_t o, int64_t k,
                                                 int8_t* q) {
  float values[kGroupSize], largest = 0;
  LoadSourceRow<kGroupSize>(p, o, k, values);
  for (const float value : values) largest = Larger(largest, value);
  const uint16_t scale = ScaleOf(largest);
  for (int64_t i = 0; i < kGroupSize; ++i) q[i] = Quantize(values[i], FromBF16(scale));
  return scale;
}

}  // namespace
}  // namespace skein::kernels
