#pragma once
// Where the configuration comes from: config file, environment, command line, in this order. Read
// at start and again at every reload.

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/config.h"

namespace skein::server {

// As given on the command line.
struct ConfigArguments {
  std::string config;            // empty: ./config.yaml if it is there
  std::string model;             // instead of model.path
  std::vector<std::string> set;  // "key=value"
};

struct LoadedConfig {
  ServerConfig config;
  std::string text;  // all keys with their values, as YAML
};

// Checked: what cannot be used is an error that names file, line and key.
absl::StatusOr<LoadedConfig> LoadConfig(const ConfigArguments& arguments);

}  // namespace skein::server
