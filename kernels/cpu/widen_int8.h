#pragma once
// int8 weights to bf16, which holds them exactly. For files compiled with AVX512-VBMI.

#include <immintrin.h>

#include <cstdint>

namespace skein::kernels {
namespace {

// By table: the low and the high byte of the size of a number, one of 128.
struct Bf16Bytes {
  alignas(64) uint8_t low[128], high[128];
};
constexpr Bf16Bytes MakeBf16Bytes() {
  Bf16Bytes table{};
  for (int size = 1; size < 128; ++size) {
    int exponent = 0;
    while (size >> (exponent + 1) != 0) ++exponent;
    const int bits = (127 + exponent) << 7 | ((size << (7 - exponent)) & 0x7f);
    table.low[size] = static_cast<uint8_t>(bits);
    table.high[size] = static_cast<uint8_t>(bits >> 8);
  }
  return table;
}
constexpr Bf16Bytes kBf16Bytes = MakeBf16Bytes();

// 64 weights, each a sign and a size, to the bf16 of twice 32: of each 128-bit lane of q the low
// half goes to v[0], the high half to v[1].
inline void WidenInt8(__m512i q, __m512i* v) {
  const auto* table = reinterpret_cast<const __m512i*>(kBf16Bytes.low);
  // The tables have 128 entries: the sign does not count.
  const __m512i low = _mm512_permutex2var_epi8(table[0], q, table[1]);
  const __m512i size = _mm512_permutex2var_epi8(table[2], q, table[3]);
  // high = size | (q & sign)
  const __m512i high = _mm512_ternarylogic_epi32(size, q, _mm512_set1_epi8(-128), 0xf8);
  v[0] = _mm512_unpacklo_epi8(low, high);
  v[1] = _mm512_unpackhi_epi8(low, high);
}

}  // namespace
}  // namespace skein::kernels
