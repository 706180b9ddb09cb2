#pragma once
// The operator tables of this build, slowest first. A new tier is one line in tiers.cc.

#include <string>
#include <vector>

#include "kernels/ops.h"

namespace skein::kernels {

struct Tier {
  const char* name;
  const char* needs;    // for messages: what the machine must have
  bool (*available)();  // does this machine have it
  const OpTable& (*ops)();
};

const std::vector<Tier>& AllTiers();

// The tier called `name`, or the best of this machine when it is empty. nullptr with *error set
// when there is no such tier or this machine cannot run it.
const Tier* FindTier(const std::string& name, std::string* error);

}  // namespace skein::kernels
