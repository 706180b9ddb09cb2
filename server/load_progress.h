#pragma once
// How a load that takes long is told to people.

#include <functional>
#include <string>

#include "engine/models/model.h"

namespace skein::server {

using ProgressFunction = std::function<void(const engine::LoadProgress&)>;

// A line in the log every second.
ProgressFunction LogProgress(std::string model);
// A bar on the terminal behind stderr, which goes when it is full.
ProgressFunction DrawProgress();

}  // namespace skein::server
