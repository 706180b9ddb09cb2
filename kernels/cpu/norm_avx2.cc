// embed, add_norm_mix, final_norm: bound by memory, so each touches a token's row while it is in
// the first cache.

#include "kernels/cpu/number_format.h"
#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/simd_avx2.h"

namespace skein::kernels::avx2 {
namespace {

// Nanoseconds for one element in a handful of passes.
constexpr double kElementCost = 0.5;

// out = LayerNorm(x); out may be x. `sum` is the sum of x.
void LayerNorm(const float* x, float sum, int64_t C, const float* weight, const float* bias,
               float eps, float* out) {
  const __m256 mean = _mm256_set1_ps(sum / static_cast<float>(C));
  const float squares = SumOver(C, [&](int64_t c, auto lanes) {
    const __m256 d = lanes.Keep(_mm256_sub_ps(lanes.Load(x + c), mean));
    return _mm256_mul_ps(d, d);
  });
  const __m256 scale = _mm256_set1_ps(InverseSqrt(squares / static_cast<float>(C) + eps));
  ForVectors(C, [&](int64_t c, auto lanes) {
    const __m256 d = _mm256_mul_ps(_mm256_sub_ps(lanes.Load(x + c), mean), scale);
    lanes.Store(out + c, _mm256_fmadd_ps(d, lanes.Load(weight + c), lanes.Load(bias + c)));
  });
}

// to = a + b (b may be null; to may be a); returns the sum of `to`.
float AddRows(const float* a, const float* b, int64_t C, float* to) {
  if (b == nullptr) {
    return SumOver(C, [&](int64_t c, auto lanes) { return lanes.Load(a + c); });
  }
  return SumOver(C, [&](int64_t c, auto lanes) {
    const __m256 v = _mm256_add_ps(lanes.Load(a + c), lanes.Load(b + c));
    lanes.Store(to + c, v);
    return v;
  });
}

// One embedding row widened to fp32; returns its sum.
float WidenRow(const void* row, DType dtype, int64_t C, float* to) {
  const auto* half = static_cast<const uint16_t*>(row);
  int64_t c = 0;
  for (; c + 8 <= C && dtype != DType::kF32; c += 8) {
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(half + c));
    const __m256 wide = dtype == DType::kF16
                            ? _mm256_cvtph_ps(h)
                            : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
    _mm256_storeu_ps(to + c, wide);
  }
  for (; c < C; ++c) to[c] = LoadElement(row, dtype, c);
  return AddRows(to, nullptr, C, to);
}

// The mixes of one token; prev is the normed row before it.
void MixToken(const AddNormMixParams& p, int64_t t, const float* prev) {
  const int64_t C = p.C, T = p.batch.num_tokens;
  const float* now = p.normed + t * C;
  float* out = p.out + t * C;
  ForVectors(C, [&](int64_t c, auto lanes) {
    const __m256 n = lanes.Load(now + c);
    const __m256 step = _mm256_sub_ps(lanes.Load(prev + c), n);
    for (int64_t m = 0; m < p.M; ++m) {
      lanes.Store(out + m * T * C + c, _mm256_fmadd_ps(step, lanes.Load(p.mix + m * C + c), n));
    }
  });
}

void NormTokens(const AddNormMixParams& p, int64_t begin, int64_t end) {
  const int64_t C = p.C;
  for (int64_t t = begin; t < end; ++t) {
    float* x = p.x + t * C;
    const float sum = AddRows(x, p.delta == nullptr ? nullptr : p.delta + t * C, C, x);
    LayerNorm(x, sum, C, p.ln_weight, p.ln_bias, p.eps, p.normed + t * C);
  }
}

// Who mixes a row's first token has read the row's state, so it also writes the new one: the normed
// rows of all tokens are there by then, and nobody else touches the state.
void MixTokens(const AddNormMixParams& p, int64_t begin, int64_t end) {
  const int64_t C = p.C;
  for (int64_t t = begin; t < end; ++t) {
    const int64_t row = p.batch.row_of[t];
    if (t != p.batch.offsets[row]) {
      MixToken(p, t, p.normed + (t - 1) * C);
      continue;
    }
    float* state = p.shift.base + p.batch.slots[row] * p.shift.stride;
    MixToken(p, t, state);
    const float* last = p.normed + (p.batch.offsets[row + 1] - 1) * C;
    ForVectors(C, [&](int64_t c, auto lanes) { lanes.Store(state + c, lanes.Load(last + c)); });
  }
}

}  // namespace

void Embed(const EmbedParams& p, Stream& stream) {
  ForRange(stream, p.num_tokens, GrainFor(kElementCost * p.C), [&p](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* x = p.x + t * p.C;
      const char* row =
          static_cast<const char*>(p.embedding) + int64_t{p.tokens[t]} * p.C * SizeOf(p.dtype);
      const float sum = WidenRow(row, p.dtype, p.C, x);
      LayerNorm(x, sum, p.C, p.ln_weight, p.ln_bias, p.eps, x);
    }
  });
}

void AddNormMix(const AddNormMixParams& p, Stream& stream) {
  const int64_t T = p.batch.num_tokens;
  if (T == p.batch.num_rows) {  // one token each: no row needs another's norm
    ForRange(stream, T, GrainFor(kElementCost * p.C * (2 + p.M)), [&p](int64_t begin, int64_t end) {
      NormTokens(p, begin, end);
      MixTokens(p, begin, end);
    });
    return;
  }
  ForRange(stream, T, GrainFor(kElementCost * p.C),
           [&p](int64_t begin, int64_t end) { NormTokens(p, begin, end); });
  ForRange(stream, T, GrainFor(kElementCost * p.C * (1 + p.M)),
           [&p](int64_t begin, int64_t end) { MixTokens(p, begin, end); });
}

void FinalNorm(const FinalNormParams& p, Stream& stream) {
  ForRange(stream, p.n, GrainFor(kElementCost * p.C), [&p](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = int64_t{p.index[i]} * p.C;
      float* out = p.out + i * p.C;
      const float sum = AddRows(p.x + at, p.delta + at, p.C, out);
      LayerNorm(out, sum, p.C, p.ln_weight, p.ln_bias, p.eps, out);
    }
  });
}

}  // namespace skein::kernels::avx2
