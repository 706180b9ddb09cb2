#pragma once
// Weights to a checkpoint file that serves on its own: names as published, and in its metadata the
// tokenizer, the chat template and what else the server wants to know.

#include <map>
#include <string>

#include "absl/status/status.h"
#include "trainer/parameters.h"

namespace skein::trainer {

// dtype: "fp32" or "bf16". Both are atomic. A .pth has no metadata.
absl::Status ExportCheckpoint(const std::string& path, const Parameters& parameters,
                              const std::string& dtype,
                              const std::map<std::string, std::string>& metadata);
absl::Status ExportPth(const std::string& path, const Parameters& parameters,
                       const std::string& dtype);

}  // namespace skein::trainer
