// skein models list | load | unload, and skein server load | drain | undrain | reload: operating a
// server while it serves.

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"

namespace skein::client {
namespace {

using Stub = v1::Control::Stub;

struct Options {
  std::string path, name, weights;
  bool replace = false, force = false;
  std::optional<double> timeout;
};

// ---- models

grpc::Status ListModels(const Options&, Context* context) {
  Connection connection = context->Connect();
  v1::ListModelsResponse models;
  const grpc::Status status = connection.Call(connection.info(), &v1::Info::Stub::ListModels,
                                              v1::ListModelsRequest(), &models);
  for (const v1::Model& model : models.models()) {
    if (context->json) {
      context->PrintJson(model);
    } else {
      context->terminal->Line(absl::StrCat(model.name(), model.is_default() ? " (default): " : ": ",
                                           model.description(), ", ", model.weights(), ", ",
                                           model.fingerprint()));
    }
  }
  return status;
}

grpc::Status LoadModel(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::LoadModelRequest request;
  request.set_path(options.path);
  request.set_name(options.name);
  request.set_weights(options.weights);
  request.set_replace(options.replace);
  grpc::ClientContext call;  // without a deadline: a large model takes minutes
  const auto stream = connection.control().LoadModel(&call, request);
  v1::LoadModelResponse response;
  while (stream->Read(&response)) {
    if (context->json) {
      context->PrintJson(response);
    } else if (response.has_progress()) {
      const int percent = static_cast<int>(response.progress().fraction() * 100);
      context->terminal->Transient(absl::StrCat("loading ", percent, " %"));
    } else {
      context->terminal->Line(absl::StrCat(response.model().name(),
                                           " is live: ", response.model().description(), ", ",
                                           response.model().weights()));
    }
  }
  return stream->Finish();
}

grpc::Status UnloadModel(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::UnloadModelRequest request;
  request.set_name(options.name);
  request.set_force(options.force);
  v1::UnloadModelResponse response;
  const grpc::Status status =
      connection.Call(connection.control(), &Stub::UnloadModel, request, &response);
  if (!status.ok()) return status;
  if (context->json) {
    context->PrintJson(response);
    return status;
  }
  const std::string rest = response.default_model().empty()
                               ? "no model is served now"
                               : absl::StrCat("the default is ", response.default_model());
  context->terminal->Line(absl::StrCat("unloaded ", options.name, ", ", response.running(),
                                       " requests still run on it; ", rest));
  return status;
}

// ---- server

double Seconds(const google::protobuf::Duration& d) {
  return static_cast<double>(d.seconds()) + d.nanos() * 1e-9;
}

grpc::Status ShowLoad(const Options&, Context* context) {
  Connection connection = context->Connect();
  v1::GetLoadResponse load;
  const grpc::Status status =
      connection.Call(connection.control(), &Stub::GetLoad, v1::GetLoadRequest(), &load);
  if (!status.ok()) return status;
  if (context->json) {
    context->PrintJson(load);
    return status;
  }
  context->terminal->Line(absl::StrCat(
      load.serving() ? "serving" : absl::StrCat("not serving: ", load.not_serving_reason()),
      load.loading() ? ", a model is being loaded" : ""));
  for (const v1::ModelLoad& m : load.models()) {
    context->terminal->Line(absl::StrFormat(
        "%s%s: %d running, %d waiting (%.1f s), %d of %d slots, %.1f tokens/s, %.2f requests/s, %s",
        m.name(),
        m.retired()      ? " (retired)"
        : m.is_default() ? " (default)"
                         : "",
        m.running(), m.waiting(), Seconds(m.queue_age()), m.slots_used(), m.slots(),
        m.tokens_per_second(), m.requests_per_second(), HumanBytes(m.bytes())));
  }
  return status;
}

grpc::Status Drain(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::DrainRequest request;
  if (options.timeout) {
    const int64_t nanos = static_cast<int64_t>(*options.timeout * 1e9);
    request.mutable_timeout()->set_seconds(nanos / 1'000'000'000);
    request.mutable_timeout()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  }
  v1::DrainResponse response;
  const grpc::Status status =
      connection.Call(connection.control(), &Stub::Drain, request, &response);
  if (!status.ok()) return status;
  context->json
      ? context->PrintJson(response)
      : context->terminal->Line(absl::StrCat("draining: ", response.running(), " running, ",
                                             response.waiting(), " waiting"));
  return status;
}

grpc::Status Undrain(const Options&, Context* context) {
  Connection connection = context->Connect();
  v1::UndrainResponse response;
  const grpc::Status status =
      connection.Call(connection.control(), &Stub::Undrain, v1::UndrainRequest(), &response);
  if (!status.ok()) return status;
  context->json ? context->PrintJson(response) : context->terminal->Line("serving again");
  return status;
}

grpc::Status Reload(const Options&, Context* context) {
  Connection connection = context->Connect();
  v1::ReloadConfigResponse response;
  const grpc::Status status = connection.Call(connection.control(), &Stub::ReloadConfig,
                                              v1::ReloadConfigRequest(), &response);
  if (!status.ok()) return status;
  if (context->json) {
    context->PrintJson(response);
    return status;
  }
  const auto keys = [](const auto& list) {
    return list.empty() ? std::string("nothing") : absl::StrJoin(list, ", ");
  };
  context->terminal->Line(absl::StrCat("in force: ", keys(response.applied())));
  if (!response.ignored().empty()) {
    context->terminal->Line(absl::StrCat("after a restart: ", keys(response.ignored())));
  }
  return status;
}

class Group {
 public:
  Group(CLI::App* app, const char* name, const char* help, Context* context)
      : context_(context), app_(app->add_subcommand(name, help)) {
    app_->require_subcommand(1);
  }

  using Run = grpc::Status (*)(const Options&, Context*);
  CLI::App* Add(const char* name, const char* help, Run run) {
    CLI::App* command = app_->add_subcommand(name, help);
    AddServerOption(command, context_);
    AddJsonOption(command, context_, "print each answer as a line of JSON");
    command->callback([options = options_, context = context_, run] {
      context->run = [options, context, run] { return run(*options, context); };
    });
    return command;
  }
  Options* options() { return options_.get(); }

 private:
  Context* const context_;
  const std::shared_ptr<Options> options_ = std::make_shared<Options>();
  CLI::App* const app_;
};

}  // namespace

void AddModels(CLI::App* app, Context* context) {
  Group group(app, "models", "the models of a server: list, load, replace, unload", context);
  Options* options = group.options();
  group.Add("list", "the models that are served", ListModels);

  CLI::App* load = group.Add(
      "load", "load a checkpoint while the server serves, beside or instead of another", LoadModel);
  load->add_option("path", options->path, "file in the server's control.model_folders")->required();
  load->add_option("--name", options->name, "name for clients; else the file's")->type_name("NAME");
  load->add_option("--weights", options->weights, "type in memory")
      ->check(CLI::IsMember({"auto", "bf16", "fp32", "int8", "int8a8"}));
  load->add_flag("--replace", options->replace,
                 "take the place of the model of this name; its requests run to their end");

  CLI::App* unload = group.Add("unload", "stop serving a model", UnloadModel);
  unload->add_option("name", options->name, "the model")->required();
  unload->add_flag("--force", options->force, "also when it is the default");
}

void AddServer(CLI::App* app, Context* context) {
  Group group(app, "server", "a server's load; drain it, reload its configuration", context);
  Options* options = group.options();
  group.Add("load", "what it does at this moment", ShowLoad);
  CLI::App* drain = group.Add("drain", "refuse new requests; what runs goes on to its end", Drain);
  drain
      ->add_option_function<double>(
          "--timeout", [options](const double& seconds) { options->timeout = seconds; },
          "end what still runs after this time")
      ->check(CLI::Range(0.0, 31'536'000.0))
      ->type_name("SECONDS");
  group.Add("undrain", "serve again", Undrain);
  group.Add("reload", "read the configuration again, as SIGHUP does", Reload);
}

}  // namespace skein::client
