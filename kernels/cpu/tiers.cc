#include "kernels/cpu/tiers.h"

#include <cpuid.h>

#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/plain.h"
#include "kernels/cpu/sampler.h"

namespace skein::kernels {
namespace {

// Here and not in an *_avx2.cc file: this function runs on every machine.
const OpTable& Avx2Ops() {
  static constexpr OpTable kTable = {
      "avx2",           avx2::PackedBytes,   avx2::Pack,   avx2::Embed,
      avx2::AddNormMix, avx2::FinalNorm,     avx2::Matmul, avx2::Prepare,
      avx2::Wkv7,       avx2::NormBonusGate, SampleRows,   ScoreRows,
  };
  return kTable;
}

bool HasPlain() { return true; }

bool HasF16C() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// The builtins also ask whether the operating system saves the wide registers.
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16C();
}

}  // namespace

const std::vector<Tier>& AllTiers() {
  static const std::vector<Tier> kTiers = {
      {"plain", "nothing", HasPlain, PlainOps},
      {"avx2", "AVX2, FMA and F16C", HasAvx2, Avx2Ops},
  };
  return kTiers;
}

const Tier* FindTier(const std::string& name, std::string* error) {
  const Tier* best = nullptr;
  std::string names;
  for (const Tier& tier : AllTiers()) {
    names += (names.empty() ? "" : ", ") + std::string(tier.name);
    if (name == tier.name && !tier.available()) {
      *error = "CPU tier '" + name + "' needs " + tier.needs + ", which this machine does not have";
      return nullptr;
    }
    if ((name.empty() || name == tier.name) && tier.available()) best = &tier;
  }
  if (best == nullptr) *error = "unknown CPU tier '" + name + "'; this build has: " + names;
  return best;
}

}  // namespace skein::kernels
