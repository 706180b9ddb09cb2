#pragma once
// RWKV-7 ("x070"). The layer loop reads like the formulae: rwkv_v7_numpy.py and rwkv_v7_demo.py of
// BlinkDL's RWKV-LM.

#include <memory>

#include "absl/status/statusor.h"
#include "engine/models/model.h"

namespace skein::engine {

absl::StatusOr<std::unique_ptr<Model>> LoadRwkv7(const Checkpoint& checkpoint,
                                                 const ModelConfig& config, kernels::Device& device,
                                                 const ModelOptions& options);

}  // namespace skein::engine
