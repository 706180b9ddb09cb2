#pragma once
// One loaded checkpoint and all that serves it: device, tokenizer, template, model, engine.

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/chat_template.h"
#include "engine/engine.h"
#include "engine/models/model.h"
#include "engine/store/conversation_store.h"
#include "engine/tokenizer.h"
#include "kernels/device.h"
#include "server/config.h"
#include "server/convert.h"
#include "server/load_meter.h"
#include "server/load_progress.h"
#include "server/metrics.h"
#include "server/prompt_states.h"
#include "skein/v1/info.pb.h"

namespace skein::server {

// Constant once loaded, but for the engine and the prompt states, which are thread-safe. In the
// order of construction: each member needs those before it.
struct ServedInstance {
  ServedInstance() = default;
  // Ends what still runs.
  ~ServedInstance();
  ServedInstance(const ServedInstance&) = delete;
  ServedInstance& operator=(const ServedInstance&) = delete;

  const std::string& name() const { return served.name; }
  // What it holds: weights, slots, prompt states.
  int64_t bytes() const;
  // As clients see it: `description` and the prompt states.
  v1::Model Describe() const;

  std::string path;
  std::unique_ptr<kernels::Device> device;
  std::shared_ptr<const engine::Tokenizer> tokenizer;  // shared with the records of its requests
  std::unique_ptr<engine::ChatTemplate> chat;
  std::unique_ptr<engine::Model> model;
  ServedModel served;
  v1::Model description;
  std::unique_ptr<ModelMetrics> metrics;
  std::unique_ptr<LoadMeter> meter;
  std::unique_ptr<engine::Engine> engine;
  PromptStates prompts;
};

// What one instance shares with others; all of it outlives the instance.
struct InstanceParts {
  const ServerConfig& config;
  engine::ConversationStore& conversations;
  Metrics& metrics;
};

// What LoadInstance allocates at most. Errors are those of a file that cannot be loaded.
absl::StatusOr<int64_t> EstimateBytes(const ModelSource& source, const ServerConfig& config);

// Loads a checkpoint and starts its engine. Takes seconds to minutes. `source.name` may be empty.
// Errors name the file; CANCELLED when `wanted` says no. Both functions may be empty;
// `wanted` is asked on any thread.
absl::StatusOr<std::unique_ptr<ServedInstance>> LoadInstance(const ModelSource& source,
                                                             const InstanceParts& parts,
                                                             ProgressFunction progress,
                                                             std::function<bool()> wanted);

}  // namespace skein::server
