#include "kernels/cpu/tiers.h"

#include "kernels/cpu/plain.h"

namespace skein::kernels {
namespace {

bool HasPlain() { return true; }

}  // namespace

const std::vector<Tier>& AllTiers() {
  static const std::vector<Tier> kTiers = {
      {"plain", "nothing", HasPlain, PlainOps},
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
