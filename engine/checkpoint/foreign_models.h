#pragma once
// Names what a checkpoint is when it is not a plain RWKV-7, by its tensor names.

#include <vector>

#include "absl/status/status.h"
#include "engine/model_config.h"

namespace skein::engine {

// INVALID_ARGUMENT: which model, version, variant or kind of file it is, by which tensor that was
// seen, and what is supported. OK: an RWKV-7 as far as names tell.
absl::Status RefuseForeignModels(const std::vector<TensorShape>& tensors);

}  // namespace skein::engine
