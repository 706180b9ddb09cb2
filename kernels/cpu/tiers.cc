#include "kernels/cpu/tiers.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/ops_avx2.h"
#include "kernels/cpu/ops_avx512.h"
#include "kernels/cpu/plain.h"
#include "kernels/cpu/sampler.h"

namespace skein::kernels {
namespace {

// Here and not in an *_avx2.cc file: this function runs on every machine.
const OpTable& Avx2Ops() {
  static constexpr OpTable kTable = {
      "avx2",           avx2::PackedBytes,   avx2::Pack,       avx2::Embed,
      avx2::AddNormMix, avx2::FinalNorm,     avx2::Matmul,     avx2::Prepare,
      avx2::Wkv7,       avx2::NormBonusGate, avx2::SampleRows, avx2::ScoreRows,
  };
  return kTable;
}

const OpTable& Avx512Ops() {
  static const OpTable kTable = [] {
    OpTable table = Avx2Ops();
    table.tier = "avx512";
    table.packed_bytes = avx512::PackedBytes;
    table.pack = avx512::Pack;
    table.matmul = avx512::Matmul;
    table.prepare = avx512::Prepare;
    table.wkv7 = avx512::Wkv7;
    table.norm_bonus_gate = avx512::NormBonusGate;
    return table;
  }();
  return kTable;
}

const OpTable& Avx512BF16Ops() {
  static const OpTable kTable = [] {
    OpTable table = Avx512Ops();
    table.tier = "avx512bf16";
    table.packed_bytes = avx512bf16::PackedBytes;
    table.pack = avx512bf16::Pack;
    table.matmul = avx512bf16::Matmul;
    return table;
  }();
  return kTable;
}

const OpTable& AmxOps() {
  static const OpTable kTable = [] {
    OpTable table = Avx512BF16Ops();
    table.tier = "amx";
    table.packed_bytes = amx::PackedBytes;
    table.pack = amx::Pack;
    table.matmul = amx::Matmul;
    table.wkv7_chunked = amx::Wkv7Chunked;
    return table;
  }();
  return kTable;
}

bool HasPlain() { return true; }

// One leaf of cpuid; zero where the machine has no such leaf.
struct Cpuid {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  explicit Cpuid(unsigned leaf, unsigned subleaf = 0) {
    __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx);
  }
};

bool HasAll(unsigned bits, unsigned wanted) { return (bits & wanted) == wanted; }

// Which registers the operating system saves (XCR0): 1 and 2 SSE and AVX, 5 to 7 AVX-512, 17 and
// 18 AMX.
bool OsSaves(unsigned wanted) {
  if (!HasAll(Cpuid(1).ecx, bit_OSXSAVE)) return false;
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return HasAll(low, wanted);
}

bool HasAvx2() {
  return HasAll(Cpuid(1).ecx, bit_AVX | bit_FMA | bit_F16C) && HasAll(Cpuid(7).ebx, bit_AVX2) &&
         OsSaves(0x6);
}

bool HasAvx512() {
  return HasAvx2() &&
         HasAll(Cpuid(7).ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL) &&
         OsSaves(0xe6);
}

bool HasAvx512BF16() {
  return HasAvx512() && HasAll(Cpuid(7).ecx, bit_AVX512VNNI) &&
         HasAll(Cpuid(7, 1).eax, bit_AVX512BF16);
}

// Linux lets a process use tile data only after it has asked; the permission holds for all threads.
bool AskForTiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

bool HasAmx() {
  constexpr unsigned kBF16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  return HasAvx512BF16() && HasAll(Cpuid(7).edx, kBF16 | kTile | kInt8) && OsSaves(0x600e6) &&
         AskForTiles();
}

}  // namespace

const std::vector<Tier>& AllTiers() {
  static const std::vector<Tier> kTiers = {
      {"plain", "nothing", HasPlain, PlainOps},
      {"avx2", "AVX2, FMA and F16C", HasAvx2, Avx2Ops},
      {"avx512", "AVX-512 F, BW, DQ and VL", HasAvx512, Avx512Ops},
      {"avx512bf16", "AVX-512 F, BW, DQ, VL, VNNI and BF16", HasAvx512BF16, Avx512BF16Ops},
      {"amx", "AMX tiles, bf16 and int8, AVX-512 BF16, and the system's permission", HasAmx,
       AmxOps},
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
