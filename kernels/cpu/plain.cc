#include "kernels/cpu/plain.h"

#include <cmath>

#include "kernels/cpu/number_format.h"
#include "kernels/cpu/region.h"
#include "kernels/cpu/sampler.h"

namespace skein::kernels {
namespace plain {
namespace {

template <typename S>
S Sigmoid(S x) {
  return S(1) / (S(1) + std::exp(-x));
}

template <typename S>
S Activate(S x, Activation activation) {
  switch (activation) {
    case Activation::kTanh:
      return std::tanh(x);
    case Activation::kSigmoid:
      return Sigmoid(x);
    case Activation::kReluSquared:
      return x < 0 ? S(0) : x * x;
    case Activation::kNone:
      break;
  }
  return x;
}

// out = (x - mean) / sqrt(var + eps) * weight + bias over n values; read(i) gives x.
template <typename S, typename Read>
void LayerNorm(int n, const Read& read, const float* weight, const float* bias, float eps,
               float* out) {
  S sum = 0;
  for (int i = 0; i < n; ++i) sum += read(i);
  const S mean = sum / n;
  S squares = 0;
  for (int i = 0; i < n; ++i) squares += (read(i) - mean) * (read(i) - mean);
  const S scale = S(1) / std::sqrt(squares / n + S(eps));
  for (int i = 0; i < n; ++i) {
    out[i] = static_cast<float>((read(i) - mean) * scale * S(weight[i]) + S(bias[i]));
  }
}

}  // namespace

// int8: [O, K] whole numbers, then [O, groups of K] bf16 scales.
int64_t Groups(int64_t K) { return (K + kGroupSize - 1) / kGroupSize; }
int64_t ScalesAt(int64_t O, int64_t K) { return (O * K + 1) / 2 * 2; }

int64_t PackedBytes(int32_t O, int32_t K, DType dtype) {
  if (IsInt8(dtype)) return ScalesAt(O, K) + O * Groups(K) * SizeOf(DType::kBF16);
  return int64_t{O} * K * SizeOf(dtype);
}

void PackInt8Row(const PackParams& p, int64_t o) {
  auto* q = static_cast<int8_t*>(p.out) + o * p.K;
  auto* scales =
      reinterpret_cast<uint16_t*>(static_cast<char*>(p.out) + ScalesAt(p.O, p.K)) + o * Groups(p.K);
  for (int64_t begin = 0; begin < p.K; begin += kGroupSize) {
    const int64_t end = begin + kGroupSize < p.K ? begin + kGroupSize : p.K;
    float largest = 0;
    for (int64_t k = begin; k < end; ++k) largest = Larger(largest, LoadSource(p, o, k));
    const uint16_t scale = scales[begin / kGroupSize] = ScaleOf(largest);
    for (int64_t k = begin; k < end; ++k) q[k] = Quantize(LoadSource(p, o, k), FromBF16(scale));
  }
}

void Pack(const PackParams& p, Stream& stream) {
  ForRange(stream, p.end() - p.first, GrainFor(2.0 * p.K), [&p](int64_t begin, int64_t end) {
    for (int64_t o = p.first + begin; o < p.first + end; ++o) {
      if (IsInt8(p.dtype)) {
        PackInt8Row(p, o);
        continue;
      }
      for (int64_t k = 0; k < p.K; ++k) {
        const float value = LoadSource(p, o, k);
        if (p.dtype == DType::kF32) {
          static_cast<float*>(p.out)[o * p.K + k] = value;
        } else {
          static_cast<uint16_t*>(p.out)[o * p.K + k] = ToBF16(value);
        }
      }
    }
  });
}

template <typename S>
void Embed(const EmbedParams& p) {
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    const int64_t row = int64_t{p.tokens[t]} * p.C;
    LayerNorm<S>(
        p.C, [&](int c) { return S(LoadElement(p.embedding, p.dtype, row + c)); }, p.ln_weight,
        p.ln_bias, p.eps, p.x + t * p.C);
  }
}

template <typename S>
void AddNormMix(const AddNormMixParams& p) {
  const int64_t C = p.C, T = p.batch.num_tokens;
  for (int64_t t = 0; t < T; ++t) {
    float* x = p.x + t * C;
    if (p.delta != nullptr) {
      for (int64_t c = 0; c < C; ++c) x[c] += p.delta[t * C + c];
    }
    LayerNorm<S>(
        C, [&](int c) { return S(x[c]); }, p.ln_weight, p.ln_bias, p.eps, p.normed + t * C);
  }
  for (int64_t r = 0; r < p.batch.num_rows; ++r) {
    float* state = p.shift.base + p.batch.slots[r] * p.shift.stride;
    for (int64_t t = p.batch.offsets[r]; t < p.batch.offsets[r + 1]; ++t) {
      const float* now = p.normed + t * C;
      for (int64_t c = 0; c < C; ++c) {
        const S step = S(state[c]) - S(now[c]);
        for (int64_t m = 0; m < p.M; ++m) {
          p.out[(m * T + t) * C + c] = static_cast<float>(S(now[c]) + step * S(p.mix[m * C + c]));
        }
        state[c] = now[c];
      }
    }
  }
}

template <typename S>
void FinalNorm(const FinalNormParams& p) {
  for (int64_t i = 0; i < p.n; ++i) {
    const float* x = p.x + int64_t{p.index[i]} * p.C;
    const float* delta = p.delta + int64_t{p.index[i]} * p.C;
    LayerNorm<S>(
        p.C, [&](int c) { return S(x[c] + delta[c]); }, p.ln_weight, p.ln_bias, p.eps,
        p.out + i * p.C);
  }
}

// 64 numbers or fewer made whole, with their unit.
struct WholeNumbers {
  int32_t q[kGroupSize];
  float unit;
};

// As bits, among which NaN is above all numbers.
uint32_t LargestOf(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t size = BitsOf(x[i]) & 0x7fffffffu;
    largest = size > largest ? size : largest;
  }
  return largest;
}

// As QuantizeInput (number_format.h) makes them, for W8A8.
WholeNumbers EightBits(const float* x, int64_t depth) {
  const Step8 step = StepOf(FloatOf(LargestOf(x, depth)));
  WholeNumbers whole{{}, step.unit};
  for (int64_t i = 0; i < depth && step.inverse != 0; ++i)
    whole.q[i] = static_cast<int32_t>(std::nearbyint(x[i] * step.inverse));
  return whole;
}

// As ToFixedPoint makes them, for int8 weights alone.
WholeNumbers FixedPoint(const float* x, int64_t depth) {
  const float largest = FromBF16(ToBF16(FloatOf(LargestOf(x, depth))));
  if (!std::isfinite(largest)) return {{}, FloatOf(0x7fc00000u)};  // NaN
  if (largest < std::ldexp(1.0f, -113)) return {{}, 0.0f};         // the unit would be a denormal
  WholeNumbers whole{{}, std::ldexp(1.0f, std::ilogb(largest) - 13)};
  for (int64_t i = 0; i < depth; ++i)
    whole.q[i] = static_cast<int32_t>(std::nearbyint(FromBF16(ToBF16(x[i])) / whole.unit));
  return whole;
}

// Exact sums of each 64 k, times their unit and their scale.
template <typename S>
S Int8Sum(const PackedMatrix& w, int64_t o, const float* x) {
  const auto* q = static_cast<const int8_t*>(w.data) + o * w.K;
  const char* scales = static_cast<const char*>(w.data) + ScalesAt(w.O, w.K);
  S sum = 0;
  for (int64_t begin = 0; begin < w.K; begin += kGroupSize) {
    const int64_t depth = begin + kGroupSize < w.K ? kGroupSize : w.K - begin;
    const WholeNumbers whole =
        w.dtype == DType::kI8 ? FixedPoint(x + begin, depth) : EightBits(x + begin, depth);
    int32_t group = 0;
    for (int64_t i = 0; i < depth; ++i) group += whole.q[i] * q[begin + i];
    const S scale = S(LoadElement(scales, DType::kBF16, o * Groups(w.K) + begin / kGroupSize));
    sum += S(group) * (S(whole.unit) * scale);
  }
  return sum;
}

template <typename S>
S FloatSum(const PackedMatrix& w, int64_t o, const float* x) {
  const bool bf16 = w.dtype == DType::kBF16;
  S sum = 0;
  for (int64_t k = 0; k < w.K; ++k) {
    const float input = bf16 ? FromBF16(ToBF16(x[k])) : x[k];
    sum += S(input) * S(LoadElement(w.data, w.dtype, o * w.K + k));
  }
  return sum;
}

template <typename S>
void Matmul(const MatmulParams& p, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < p.T; ++t) {
    const float* x = p.x + t * p.x_stride;
    for (int64_t o = begin; o < end; ++o) {
      S sum = IsInt8(p.w.dtype) ? Int8Sum<S>(p.w, o, x) : FloatSum<S>(p.w, o, x);
      if (p.bias != nullptr) sum += S(p.bias[o]);
      p.y[t * p.y_stride + o] = static_cast<float>(Activate(sum, p.activation));
    }
  }
}

template <typename S>
void Prepare(const PrepareParams& p) {
  const int64_t C = int64_t{p.H} * p.N;
  for (int64_t t = 0; t < p.T; ++t) {
    for (int64_t h = 0; h < p.H; ++h) {
      S squares = 0;
      for (int64_t c = h * p.N; c < (h + 1) * p.N; ++c) {
        const S kk = S(p.k[t * C + c]) * S(p.k_k[c]);
        squares += kk * kk;
      }
      const S norm = std::sqrt(squares);
      const S scale = S(1) / (norm < S(1e-12) ? S(1e-12) : norm);
      for (int64_t c = h * p.N; c < (h + 1) * p.N; ++c) {
        const int64_t i = t * C + c;
        const S gate = Sigmoid(S(p.a_raw[i]));
        const S k = S(p.k[i]);
        const S kk = k * S(p.k_k[c]) * scale;
        p.w[i] = static_cast<float>(std::exp(S(-0.60653065971263342) * Sigmoid(S(p.w[i]))));
        p.a[i] = static_cast<float>(-kk);
        p.b[i] = static_cast<float>(kk * gate);
        p.k[i] = static_cast<float>(k * (S(1) + (gate - S(1)) * S(p.k_a[c])));
        if (p.v_raw == nullptr) {
          p.v_first[i] = p.v[i];
        } else {
          const S v = S(p.v[i]);
          p.v[i] = static_cast<float>(v + (S(p.v_first[i]) - v) * Sigmoid(S(p.v_raw[i])));
        }
      }
    }
  }
}

template <typename S>
void Wkv7(const Wkv7Params& p, int64_t begin, int64_t end) {
  const int64_t N = p.N, C = p.H * N;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t row = item / p.H, h = item % p.H;
    float* state = p.state.base + p.batch.slots[row] * p.state.stride + h * N * N;
    for (int64_t t = p.batch.offsets[row]; t < p.batch.offsets[row + 1]; ++t) {
      const int64_t at = t * C + h * N;
      for (int64_t i = 0; i < N; ++i) {  // value channel
        float* s = state + i * N;
        S s_a = 0;
        for (int64_t j = 0; j < N; ++j) s_a += S(s[j]) * S(p.a[at + j]);
        S y = 0;
        for (int64_t j = 0; j < N; ++j) {  // key channel
          const S next =
              S(s[j]) * S(p.w[at + j]) + s_a * S(p.b[at + j]) + S(p.v[at + i]) * S(p.k[at + j]);
          y += next * S(p.r[at + j]);
          s[j] = static_cast<float>(next);
        }
        p.y[at + i] = static_cast<float>(y);
      }
    }
  }
}

template <typename S>
void NormBonusGate(const NormBonusGateParams& p) {
  const int64_t N = p.N, C = p.H * N;
  for (int64_t t = 0; t < p.T; ++t) {
    for (int64_t h = 0; h < p.H; ++h) {
      const int64_t at = t * C + h * N;
      S sum = 0, bonus = 0;
      for (int64_t n = 0; n < N; ++n) {
        sum += S(p.y[at + n]);
        bonus += S(p.r[at + n]) * S(p.k[at + n]) * S(p.r_k[h * N + n]);
      }
      const S mean = sum / N;
      S squares = 0;
      for (int64_t n = 0; n < N; ++n) {
        squares += (S(p.y[at + n]) - mean) * (S(p.y[at + n]) - mean);
      }
      const S scale = S(1) / std::sqrt(squares / N + S(p.eps));
      for (int64_t n = 0; n < N; ++n) {
        const int64_t c = h * N + n;
        const S norm = (S(p.y[at + n]) - mean) * scale * S(p.ln_weight[c]) + S(p.ln_bias[c]);
        p.out[at + n] = static_cast<float>((norm + bonus * S(p.v[at + n])) * S(p.g[at + n]));
      }
    }
  }
}

template <typename S>
void Score(const ScoreParams& p) {
  for (int64_t i = 0; i < p.n; ++i) {
    const float* logits = p.logits + i * p.V;
    int64_t best = 0;
    bool nan = false;
    for (int64_t v = 0; v < p.V; ++v) {
      nan |= std::isnan(logits[v]);
      if (logits[v] > logits[best]) best = v;
    }
    S sum = 0;
    for (int64_t v = 0; v < p.V; ++v) sum += std::exp(S(logits[v]) - S(logits[best]));
    const S target = S(logits[p.target[i]]);
    p.logprob[i] = nan ? NAN : static_cast<float>(target - S(logits[best]) - std::log(sum));
    p.greedy[i] = !nan && best == p.target[i];
  }
}

#define SKEIN_PLAIN_INSTANCES(S)                                  \
  template void Embed<S>(const EmbedParams&);                     \
  template void AddNormMix<S>(const AddNormMixParams&);           \
  template void FinalNorm<S>(const FinalNormParams&);             \
  template void Matmul<S>(const MatmulParams&, int64_t, int64_t); \
  template void Prepare<S>(const PrepareParams&);                 \
  template void Wkv7<S>(const Wkv7Params&, int64_t, int64_t);     \
  template void NormBonusGate<S>(const NormBonusGateParams&);
SKEIN_PLAIN_INSTANCES(float)
SKEIN_PLAIN_INSTANCES(double)
template void Score<double>(const ScoreParams&);
#undef SKEIN_PLAIN_INSTANCES

namespace {

// A table entry that runs on the calling thread.
template <typename Params, void (*kOperator)(const Params&)>
void OnThisThread(const Params& p, Stream&) {
  const DenormalsScope denormals;
  kOperator(p);
}

void MatmulGroup(const MatmulParams* params, int n, Stream& stream) {
  for (int i = 0; i < n; ++i) {
    const MatmulParams& p = params[i];
    ForRange(stream, p.w.O, GrainFor(1.0 * p.T * p.w.K),
             [&p](int64_t begin, int64_t end) { Matmul<float>(p, begin, end); });
  }
}

void Wkv7Rows(const Wkv7Params& p, Stream& stream) {
  const double tokens = static_cast<double>(p.batch.num_tokens) / p.batch.num_rows;
  ForRange(stream, int64_t{p.batch.num_rows} * p.H, GrainFor(4.0 * p.N * p.N * tokens),
           [&p](int64_t begin, int64_t end) { Wkv7<float>(p, begin, end); });
}

}  // namespace
}  // namespace plain

const OpTable& PlainOps() {
  static constexpr OpTable kTable = {
      "plain",
      plain::PackedBytes,
      plain::Pack,
      plain::OnThisThread<EmbedParams, plain::Embed<float>>,
      plain::OnThisThread<AddNormMixParams, plain::AddNormMix<float>>,
      plain::OnThisThread<FinalNormParams, plain::FinalNorm<float>>,
      plain::MatmulGroup,
      plain::OnThisThread<PrepareParams, plain::Prepare<float>>,
      plain::Wkv7Rows,
      plain::OnThisThread<NormBonusGateParams, plain::NormBonusGate<float>>,
      SampleRows,
      ScoreRows,
  };
  return kTable;
}

}  // namespace skein::kernels
