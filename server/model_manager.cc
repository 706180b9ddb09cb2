#include "server/model_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/convert_control.h"
#include "server/log.h"
#include "server/memory_room.h"
#include "server/model_files.h"
#include "server/status.h"
#include "server/systemd_notify.h"

namespace skein::server {
namespace {

// How long the service manager waits at start for the next sign of progress; what gives none in
// between is reading a checkpoint once to tell whether it is the one that packed weights are of.
constexpr absl::Duration kLoadStep = absl::Minutes(5);

std::string MiB(int64_t bytes) { return absl::StrCat(std::max<int64_t>(bytes, 0) >> 20, " MiB"); }

absl::Status Stopping() {
  return base::MakeStatus(absl::StatusCode::kUnavailable, "DRAINING", "the server is stopping");
}

// Whether a model fits into memory beside what is loaded; `what` says what may be done about it.
absl::Status CheckRoom(const ModelSource& source, const ServerConfig& config,
                       absl::string_view subject, absl::string_view what) {
  SKEIN_ASSIGN_OR_RETURN(const int64_t needed, EstimateBytes(source, config));
  const int64_t room = MemoryRoom(config.control.memory_bytes);
  if (needed <= room) return absl::OkStatus();
  return base::WaitingDoesNotHelp(
      base::MakeStatus(absl::StatusCode::kResourceExhausted, "MODEL_MEMORY",
                       absl::StrCat(subject, " needs up to ", MiB(needed),
                                    " beside what is loaded; ", MiB(room), " are left: ", what)));
}

absl::Status NameTaken(const std::string& name) {
  return base::MakeStatus(
      absl::StatusCode::kAlreadyExists, "MODEL_EXISTS",
      absl::StrCat("a model '", name, "' is served; set replace to take its place"));
}

}  // namespace

void ModelManager::Stop() {
  prompts_.Stop();
  absl::MutexLock lock(&mu_);
  stopping_ = true;
}

ModelManager::~ModelManager() {
  Stop();
  std::thread thread;
  {
    absl::MutexLock lock(&mu_);
    thread.swap(thread_);
  }
  if (thread.joinable()) thread.join();
}

bool ModelManager::BeginLoad(std::vector<std::string> names) {
  if (loading_) return false;
  loading_ = true;
  models_.SetLoading(std::move(names));
  return true;
}

void ModelManager::EndLoad() {
  absl::MutexLock lock(&mu_);
  models_.SetLoading({});
  loading_ = false;
}

void ModelManager::Announce(const std::vector<ModelSource>& sources) {
  std::vector<std::string> names;
  for (const ModelSource& source : sources) names.push_back(source.Name());
  absl::MutexLock lock(&mu_);
  SKEIN_CHECK(BeginLoad(std::move(names)));
}

absl::Status ModelManager::LoadAnnounced(const std::vector<ModelSource>& sources,
                                         const ProgressFunction& progress) {
  absl::Status status = LoadAll(sources, progress);
  EndLoad();
  return status;
}

absl::Status ModelManager::LoadAll(const std::vector<ModelSource>& sources,
                                   const ProgressFunction& progress) {
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  std::vector<std::unique_ptr<ServedInstance>> loaded;
  for (const ModelSource& source : sources) {
    SKEIN_RETURN_IF_ERROR(CheckRoom(
        source, *config, absl::StrCat("model '", source.Name(), "' (", source.path, ")"),
        "serve fewer (models), with fewer engine.slots or weights of fewer bits, or allow this "
        "process more (control.memory, its control group)"));
    const auto wanted = [] {  // asked as the weights and the prompt states are made
      AskForMoreTime(kLoadStep);
      return true;
    };
    wanted();  // a packed file's checkpoint may be read whole before it is asked
    SKEIN_ASSIGN_OR_RETURN(std::unique_ptr<ServedInstance> instance,
                           LoadInstance(source, {*config, conversations_, metrics_},
                                        progress ? progress : LogProgress(source.Name()), wanted));
    loaded.push_back(std::move(instance));
  }
  for (std::unique_ptr<ServedInstance>& instance : loaded) {
    SKEIN_RETURN_IF_ERROR(GoLive(std::move(instance), /*replace=*/false));
  }
  return absl::OkStatus();
}

absl::Status ModelManager::CheckName(const std::string& name, bool replace) const {
  SKEIN_RETURN_IF_ERROR(CheckModelName(name));
  if (!replace && models_.Find(name) != nullptr) return NameTaken(name);
  return absl::OkStatus();
}

absl::Status ModelManager::Load(ModelSource source, bool replace,
                                std::shared_ptr<LoadListener> listener) {
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  SKEIN_ASSIGN_OR_RETURN(source.path, FindModelFile(source.path, config->control.model_folders));
  SKEIN_RETURN_IF_ERROR(CheckName(source.Name(), replace));
  source.vocabulary = config->model.vocabulary;
  absl::MutexLock lock(&mu_);
  if (stopping_) return Stopping();
  if (!BeginLoad({source.Name()})) {
    return base::MakeStatus(absl::StatusCode::kAborted, "LOAD_IN_PROGRESS",
                            "another model is being loaded; one at a time");
  }
  if (thread_.joinable()) thread_.join();  // it has ended
  thread_ = std::thread(
      [this, source = std::move(source), replace, listener = std::move(listener)]() mutable {
        LogLine(LogLevel::kInfo, "loading").With("path", source.path).With("model", source.Name());
        const absl::StatusOr<v1::Model> model = LoadInto(source, replace, listener.get());
        LogLine line(model.ok() ? LogLevel::kInfo : LogLevel::kWarning,
                     model.ok() ? "the model is live" : "the model was not loaded");
        line.With("path", source.path).With("model", source.Name());
        if (!model.ok()) line.With("error", std::string(model.status().message()));
        EndLoad();
        listener->OnLoaded(model);
        listener.reset();
      });
  return absl::OkStatus();
}

absl::StatusOr<v1::Model> ModelManager::LoadInto(const ModelSource& source, bool replace,
                                                 LoadListener* listener) {
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  SKEIN_RETURN_IF_ERROR(
      CheckRoom(source, *config, "the model", "unload one, or use fewer slots or bf16"));
  absl::StatusOr<std::unique_ptr<ServedInstance>> loaded = LoadInstance(
      source, {*config, conversations_, metrics_},
      [listener, log = LogProgress(source.Name())](const engine::LoadProgress& progress) {
        log(progress);
        // For the client the weights are there by then.
        if (progress.stage == engine::LoadProgress::Stage::kWriting) return;
        listener->OnProgress(progress.fraction());
      },
      [this, listener] { return StillWanted(*listener).ok(); });
  SKEIN_RETURN_IF_ERROR(StillWanted(*listener));
  if (!loaded.ok()) return loaded.status();
  v1::Model description = (*loaded)->Describe();
  SKEIN_RETURN_IF_ERROR(GoLive(*std::move(loaded), replace));
  description.set_is_default(models_.default_name() == description.name());
  return description;
}

absl::Status ModelManager::GoLive(std::unique_ptr<ServedInstance> instance, bool replace) {
  absl::MutexLock lock(&publish_mu_);
  // They may have been reloaded meanwhile.
  const std::shared_ptr<const ServerConfig> config = config_.Get();
  SKEIN_ASSIGN_OR_RETURN(
      PromptStates::Map prompts,
      instance->prompts.Declare(config->prompts, instance->served, instance->engine->tag()));
  instance->prompts.Set(std::move(prompts));
  instance->engine->SetLimits(config->ToEngineOptions());
  const std::string name = instance->name();
  if (!lifecycle_.Serve(&instance, replace)) return NameTaken(name);
  prompts_.Wake();
  return absl::OkStatus();
}

absl::Status ModelManager::Reconfigure(const ServerConfig& config,
                                       absl::FunctionRef<absl::Status()> apply) {
  absl::MutexLock lock(&publish_mu_);
  std::vector<std::pair<ModelRegistry::Ref, PromptStates::Map>> prompts;
  for (auto& [name, instance] : models_.Named()) {
    SKEIN_ASSIGN_OR_RETURN(
        PromptStates::Map states,
        instance->prompts.Declare(config.prompts, instance->served, instance->engine->tag()));
    prompts.emplace_back(instance, std::move(states));
  }
  SKEIN_RETURN_IF_ERROR(apply());
  config_.Set(config);
  for (auto& [instance, states] : prompts) instance->prompts.Set(std::move(states));
  for (const auto& instance : models_.All()) {
    instance->engine->SetLimits(config.ToEngineOptions());
  }
  prompts_.Wake();
  return absl::OkStatus();
}

absl::Status ModelManager::StillWanted(const LoadListener& listener) const {
  absl::MutexLock lock(&mu_);
  if (stopping_) return Stopping();
  return listener.Wanted() ? absl::OkStatus() : absl::CancelledError("the load was cancelled");
}

bool ModelManager::loading() const {
  absl::MutexLock lock(&mu_);
  return loading_;
}

absl::StatusOr<ModelManager::Unloaded> ModelManager::Unload(const std::string& name, bool force) {
  absl::MutexLock lock(&unload_mu_);
  Unloaded unloaded;
  SKEIN_ASSIGN_OR_RETURN(unloaded.instance, models_.Resolve(name));
  if (!force && models_.default_name() == name) {
    return Precondition(
        "DEFAULT_MODEL", name,
        absl::StrCat("model '", name,
                     "' serves the requests that name none; set force to unload it"));
  }
  models_.Remove(name);
  unloaded.default_model = models_.default_name();
  LogLine(LogLevel::kInfo, "model unloaded").With("model", name);
  return unloaded;
}

}  // namespace skein::server
