#include "kernels/train/train_ops.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/cpu/tiers.h"
#include "kernels/train/avx2.h"
#include "kernels/train/avx512.h"
#include "kernels/train/plain.h"

namespace skein::kernels::train {
namespace {

template <class Real>
TrainOps<Real> MakePlain() {
  return {.tier = "plain",
          .add_norm_mix = PlainAddNormMix<Real>,
          .add_norm_mix_grad = PlainAddNormMixGrad<Real>,
          .prepare = PlainPrepare<Real>,
          .prepare_grad = PlainPrepareGrad<Real>,
          .wkv7 = ChunkedWkv7<Real>,
          .wkv7_grad = ChunkedWkv7Grad<Real>,
          .norm_bonus_gate = PlainNormBonusGate<Real>,
          .norm_bonus_gate_grad = PlainNormBonusGateGrad<Real>,
          .cross_entropy = PlainCrossEntropy<Real>,
          .relu_squared = PlainReluSquared<Real>,
          .relu_squared_grad = PlainReluSquaredGrad<Real>,
          .adamw = PlainAdamW,
          .product = nullptr};
}

constexpr TrainOps<float> kAvx2 = {.tier = "avx2",
                                   .add_norm_mix = Avx2AddNormMix,
                                   .add_norm_mix_grad = Avx2AddNormMixGrad,
                                   .prepare = Avx2Prepare,
                                   .prepare_grad = Avx2PrepareGrad,
                                   .wkv7 = Avx2Wkv7,
                                   .wkv7_grad = Avx2Wkv7Grad,
                                   .norm_bonus_gate = Avx2NormBonusGate,
                                   .norm_bonus_gate_grad = Avx2NormBonusGateGrad,
                                   .cross_entropy = Avx2CrossEntropy,
                                   .relu_squared = Avx2ReluSquared,
                                   .relu_squared_grad = Avx2ReluSquaredGrad,
                                   .adamw = Avx2AdamW,
                                   .product = nullptr};

constexpr TrainOps<float> Avx512Ops() {
  TrainOps<float> ops = kAvx2;
  ops.tier = "avx512";
  ops.wkv7 = Avx512Wkv7;
  ops.wkv7_grad = Avx512Wkv7Grad;
  return ops;
}
constexpr TrainOps<float> kAvx512 = Avx512Ops();

constexpr TrainOps<float> AmxOps() {
  TrainOps<float> ops = kAvx512;
  ops.tier = "amx";
  ops.wkv7_bf16 = AmxWkv7;
  ops.wkv7_bf16_grad = AmxWkv7Grad;
  ops.product = AmxProduct;
  return ops;
}
constexpr TrainOps<float> kAmx = AmxOps();

const TrainOps<float>& ChooseFloat() {
  const char* forced = std::getenv("SKEIN_CPU");
  std::string error;
  const Tier* chosen = FindTier(forced != nullptr ? forced : "", &error);
  if (chosen == nullptr) throw std::runtime_error("environment variable SKEIN_CPU: " + error);
  // A tier that has no training operators of its own uses those of the best tier below it.
  const TrainOps<float>* best = &PlainTrainOps<float>();
  for (const Tier& tier : AllTiers()) {
    if (const TrainOps<float>* ops = FindTrainOps(tier.name)) best = ops;
    if (&tier == chosen) break;
  }
  return *best;
}

}  // namespace

template <class Real>
const TrainOps<Real>& PlainTrainOps() {
  static const TrainOps<Real> ops = MakePlain<Real>();
  return ops;
}
template const TrainOps<float>& PlainTrainOps<float>();
template const TrainOps<double>& PlainTrainOps<double>();

const TrainOps<float>* FindTrainOps(const char* tier) {
  std::string error;
  if (*tier == '\0' || FindTier(tier, &error) == nullptr) return nullptr;
  for (const TrainOps<float>* ops : {&PlainTrainOps<float>(), &kAvx2, &kAvx512, &kAmx}) {
    if (std::strcmp(tier, ops->tier) == 0) return ops;
  }
  return nullptr;
}

template <>
const TrainOps<float>& ActiveTrainOps<float>() {
  static const TrainOps<float>& ops = ChooseFloat();
  return ops;
}

template <>
const TrainOps<double>& ActiveTrainOps<double>() {
  return PlainTrainOps<double>();
}

template <class Real>
void SumBlocks(const Real* partial, int64_t blocks, int64_t n, Real* out) {
  std::fill_n(out, n, Real(0));
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < n; ++i) out[i] += partial[block * n + i];
  }
}
template void SumBlocks(const float*, int64_t, int64_t, float*);
template void SumBlocks(const double*, int64_t, int64_t, double*);

double SquaredNormBlock(const float* x, int64_t n) {
  // Eight sums in a fixed order, which a compiler may keep in vectors.
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) sums[j] += static_cast<double>(x[i + j]) * x[i + j];
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  double sum = 0;
  for (double s : sums) sum += s;
  return sum;
}

}  // namespace skein::kernels::train
