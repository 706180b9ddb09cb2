#include "engine/models/model.h"

#include "engine/base/check.h"
#include "engine/models/rwkv7.h"

namespace skein::engine {

absl::StatusOr<std::unique_ptr<Model>> Model::Load(const Checkpoint& checkpoint,
                                                   kernels::Device& device,
                                                   const ModelOptions& options) {
  SKEIN_CHECK(options.max_rows >= 1 && options.max_tokens >= options.max_rows &&
              options.max_logits >= 1);
  SKEIN_ASSIGN_OR_RETURN(const ModelConfig config, checkpoint.Config());
  switch (config.version) {
    case RwkvVersion::kV7:
      return LoadRwkv7(checkpoint, config, device, options);
  }
  return absl::InternalError("a version without a model");
}

}  // namespace skein::engine
