#pragma once
// Loads and unloads models while the server serves. One load at a time, on a thread of its own.
// Thread-safe.

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "server/lifecycle.h"
#include "server/live_config.h"
#include "server/load_progress.h"
#include "server/model_registry.h"
#include "server/prompt_computer.h"

namespace skein::server {

// Who asked for a load. Called on the loading thread; must not block.
class LoadListener {
 public:
  virtual ~LoadListener() = default;
  virtual void OnProgress(double fraction) = 0;
  // Exactly once, last.
  virtual void OnLoaded(const absl::StatusOr<v1::Model>& model) = 0;
  // False: nobody waits any more, so the model does not go live.
  virtual bool Wanted() const = 0;
};

class ModelManager {
 public:
  // All outlive it.
  ModelManager(LiveConfig& config, engine::ConversationStore& conversations, Metrics& metrics,
               ModelRegistry& models, Lifecycle& lifecycle)
      : config_(config),
        conversations_(conversations),
        metrics_(metrics),
        models_(models),
        lifecycle_(lifecycle),
        prompts_(models) {}
  ~ModelManager();

  // Puts a changed configuration in force for the models: limits and prompt states, which are
  // computed later. `apply` does the rest, and what it refuses changes nothing here.
  absl::Status Reconfigure(const ServerConfig& config, absl::FunctionRef<absl::Status()> apply);

  // A load that is under way ends soon and its model does not go live; no other one begins.
  void Stop();

  // At start, before anybody can ask for them: from now on clients hear that these are being
  // loaded.
  void Announce(const std::vector<ModelSource>& sources);
  // Loads what was announced, on the caller's thread and from anywhere. One that does not fit into
  // memory beside those before it is an error.
  // None goes live before all are loaded, so that a signal meanwhile has nobody to wait for.
  // Without `progress` the log tells how it goes.
  absl::Status LoadAnnounced(const std::vector<ModelSource>& sources,
                             const ProgressFunction& progress);

  // Refuses at once (ABORTED: another load runs; ALREADY_EXISTS; NOT_FOUND; INVALID_ARGUMENT), or
  // tells the listener how it goes.
  absl::Status Load(ModelSource source, bool replace, std::shared_ptr<LoadListener> listener);
  bool loading() const;

  struct Unloaded {
    std::shared_ptr<ServedInstance> instance;  // until its last request has ended
    std::string default_model;
  };
  // NOT_FOUND, FAILED_PRECONDITION (the default, without force).
  absl::StatusOr<Unloaded> Unload(const std::string& name, bool force);

 private:
  // False: one is under way. Else from now on clients hear that these are being loaded.
  bool BeginLoad(std::vector<std::string> names) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void EndLoad();
  absl::Status LoadAll(const std::vector<ModelSource>& sources, const ProgressFunction& progress);
  absl::StatusOr<v1::Model> LoadInto(const ModelSource& source, bool replace,
                                     LoadListener* listener);
  absl::Status GoLive(std::unique_ptr<ServedInstance> instance, bool replace);
  absl::Status StillWanted(const LoadListener& listener) const;
  absl::Status CheckName(const std::string& name, bool replace) const;

  // Constant after construction, with their own synchronisation.
  LiveConfig& config_;
  engine::ConversationStore& conversations_;
  Metrics& metrics_;
  ModelRegistry& models_;
  Lifecycle& lifecycle_;
  PromptComputer prompts_;
  // Between the configuration as a model goes live with it and as it is in force.
  absl::Mutex publish_mu_;

  mutable absl::Mutex mu_;
  bool loading_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_ ABSL_GUARDED_BY(mu_);  // of the last load
  absl::Mutex unload_mu_;                    // two callers must not both find another default
};

}  // namespace skein::server
