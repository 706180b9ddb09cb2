#pragma once
// The sampling, stopping and conversation flags that `generate` and `chat` share, straight into a
// GenerateRequest: a flag that is not given leaves its field unset, so that the server's default
// holds.

#include <functional>
#include <string>

#include "CLI/CLI.hpp"
#include "skein/v1/generation.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

// `request` must live until the command line is parsed.
void AddSamplingFlags(CLI::App* command, v1::GenerateRequest* request);
void AddStoppingFlags(CLI::App* command, v1::GenerateRequest* request);
CLI::Option* AddPromptStateFlag(CLI::App* command, std::function<void(const std::string&)> set);
CLI::Option* AddThinkingFlag(CLI::App* command, std::function<void(const std::string&)> set);

}  // namespace skein::client
