#pragma once
// What a changed configuration means for a server that runs: some keys can change, the others keep
// their value until a restart. Pure.

#include <string>
#include <vector>

#include "server/config.h"

namespace skein::server {

struct ReloadPlan {
  ServerConfig config;               // what is in force afterwards
  std::vector<std::string> applied;  // keys that change
  std::vector<std::string> ignored;  // keys that would need a restart
};

// Both are valid; what comes of them together need not be, so it wants Validate before it is used.
ReloadPlan PlanReload(const ServerConfig& present, const ServerConfig& wanted);

}  // namespace skein::server
