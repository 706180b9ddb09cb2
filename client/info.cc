// skein info FILE | SERVER: what a checkpoint holds, or what a server serves.

#include <sys/stat.h>

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"
#include "engine/chat_template.h"
#include "engine/checkpoint.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

const char* DTypeName(engine::DType dtype) {
  switch (dtype) {
    case engine::DType::kF32:
      return "fp32";
    case engine::DType::kBF16:
      return "bf16";
    default:
      return "fp16";
  }
}

// "bf16", or the counts when types are mixed.
std::string DTypes(const engine::Checkpoint& checkpoint) {
  std::map<std::string, int64_t> elements;
  for (const engine::TensorView& tensor : checkpoint.tensors())
    elements[DTypeName(tensor.dtype)] += tensor.elements();
  return absl::StrJoin(elements, " + ", absl::PairFormatter(" "));
}

std::string TokenizerName(const engine::Checkpoint& checkpoint, int32_t V) {
  const auto& metadata = checkpoint.metadata();
  if (const auto it = metadata.find(engine::kMetaTokenizer); it != metadata.end()) {
    return it->second + (metadata.count(engine::kMetaVocabulary) ? ", vocabulary in the file" : "");
  }
  return V == 65536 ? "world (by its rows)" : V == 257 ? "bytes (by its rows)" : "unknown";
}

nlohmann::json ToJson(const engine::Checkpoint& checkpoint, const engine::ModelConfig& c,
                      int64_t file_bytes) {
  nlohmann::json metadata = nlohmann::json::object();
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (key != engine::kMetaVocabulary) metadata[key] = value;
  }
  return {{"path", checkpoint.path()},
          {"bytes", file_bytes},
          {"model", c.ToString()},
          {"rwkv_version", "7"},
          {"layers", c.L},
          {"width", c.C},
          {"heads", c.H},
          {"head_size", c.N},
          {"vocabulary", c.V},
          {"ffn_width", c.F},
          {"ranks", {{"w", c.rank_w}, {"a", c.rank_a}, {"v", c.rank_v}, {"g", c.rank_g}}},
          {"parameters", c.parameters},
          {"state_bytes", c.state_floats() * 4},
          {"tensors", checkpoint.tensors().size()},
          {"dtypes", DTypes(checkpoint)},
          {"tokenizer", TokenizerName(checkpoint, c.V)},
          {"fingerprint", absl::StrFormat("%016x", checkpoint.Fingerprint())},
          {"metadata", metadata}};
}

void PrintField(Terminal* terminal, absl::string_view name, absl::string_view value) {
  if (!value.empty()) terminal->Line(absl::StrFormat("  %-18s %s", name, value));
}

void PrintFile(const engine::Checkpoint& checkpoint, const engine::ModelConfig& c,
               int64_t file_bytes, Terminal* terminal) {
  terminal->Line(absl::StrCat(checkpoint.path(), ": ", c.ToString()));
  PrintField(terminal, "file",
             absl::StrCat(HumanBytes(file_bytes), ", ", checkpoint.tensors().size(), " tensors, ",
                          DTypes(checkpoint)));
  PrintField(terminal, "channel mix", absl::StrCat("width ", c.F));
  PrintField(terminal, "ranks",
             absl::StrCat("w ", c.rank_w, ", a ", c.rank_a, ", v ", c.rank_v, ", g ", c.rank_g));
  PrintField(terminal, "state", absl::StrCat(HumanBytes(c.state_floats() * 4), " a conversation"));
  PrintField(terminal, "tokenizer", TokenizerName(checkpoint, c.V));
  if (const auto chat = engine::ChatTemplate::For(checkpoint); chat.ok())
    PrintField(terminal, "chat template", chat->name());
  PrintField(terminal, "fingerprint", absl::StrFormat("%016x", checkpoint.Fingerprint()));
  for (const auto& [key, value] : checkpoint.metadata()) {
    if (key != engine::kMetaVocabulary) PrintField(terminal, key, Preview(value, 200));
  }
}

grpc::Status InfoOfFile(const std::string& path, Context* context) {
  const auto checkpoint = engine::Checkpoint::Open(path);
  if (!checkpoint.ok()) return FromAbsl(checkpoint.status());
  const auto config = (*checkpoint)->Config();
  if (!config.ok()) return FromAbsl(config.status());
  struct stat file = {};
  stat(path.c_str(), &file);
  if (context->json) {
    context->terminal->Raw(ToJson(**checkpoint, *config, file.st_size)
                               .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) +
                           "\n");
  } else {
    PrintFile(**checkpoint, *config, file.st_size, context->terminal);
  }
  return grpc::Status::OK;
}

void PrintServer(const v1::ServerInfo& info, const std::string& server, Terminal* terminal) {
  terminal->Line(absl::StrCat("skeind ", info.version(), " on ", server,
                              info.draining() ? ", shutting down" : ""));
  PrintField(terminal, "device",
             absl::StrCat(info.device(), " ", info.device_tier(), ", ", info.slots(), " slots"));
  PrintField(terminal, "up", absl::StrCat(info.uptime().seconds(), " s"));
  const v1::Limits& limits = info.limits();
  PrintField(
      terminal, "limits",
      absl::StrCat("prompt ", limits.max_prompt_tokens(), " tokens, answer ", limits.max_tokens(),
                   " tokens, queue ", limits.max_queued(), " requests"));
  const v1::Sampling& s = info.default_sampling();
  PrintField(terminal, "defaults",
             absl::StrCat("temperature ", s.temperature(), ", top_p ", s.top_p(), ", top_k ",
                          s.top_k(), ", max_tokens ", info.default_stopping().max_tokens()));
}

void PrintModel(const v1::Model& model, Terminal* terminal) {
  terminal->Line(absl::StrCat("model ", model.name(), ": ", model.description()));
  PrintField(terminal, "weights",
             absl::StrCat(model.weights(), ", fingerprint ", model.fingerprint()));
  PrintField(terminal, "state", absl::StrCat(HumanBytes(model.state_bytes()), " a conversation"));
  PrintField(terminal, "tokenizer", model.tokenizer());
  PrintField(terminal, "chat template", model.chat_template());
  if (model.training_context() > 0) {
    PrintField(terminal, "trained with",
               absl::StrCat(model.training_context(), " tokens of context (not a limit)"));
  }
  for (const v1::PromptState& state : model.prompt_states()) {
    PrintField(terminal, "prompt state",
               absl::StrCat(state.name(), ", ", state.tokens(), " tokens"));
  }
  PrintField(terminal, "about", model.about());
  for (const std::string& example : model.examples()) PrintField(terminal, "example", example);
}

grpc::Status InfoOfServer(Context* context) {
  Connection connection = context->Connect();
  v1::ServerInfo info;
  grpc::Status status = connection.Call(connection.info(), &v1::Info::Stub::GetServerInfo,
                                        v1::GetServerInfoRequest(), &info);
  if (!status.ok()) return status;
  v1::ListModelsResponse models;
  status = connection.Call(connection.info(), &v1::Info::Stub::ListModels, v1::ListModelsRequest(),
                           &models);
  if (!status.ok()) return status;
  if (context->json) {
    context->PrintJson(info);
    for (const v1::Model& model : models.models()) context->PrintJson(model);
    return status;
  }
  PrintServer(info, context->server, context->terminal);
  for (const v1::Model& model : models.models()) PrintModel(model, context->terminal);
  return status;
}

// host:port without a slash is a server; everything else a file, whether it is there or not.
bool LooksLikeServer(const std::string& target) {
  struct stat file;
  if (stat(target.c_str(), &file) == 0) return false;
  const size_t colon = target.rfind(':');
  return absl::StartsWith(target, "unix:") || absl::StartsWith(target, "dns:") ||
         (colon != std::string::npos && target.find('/') == std::string::npos &&
          colon + 1 < target.size() &&
          std::all_of(target.begin() + colon + 1, target.end(),
                      [](char c) { return c >= '0' && c <= '9'; }));
}

}  // namespace

void AddInfo(CLI::App* app, Context* context) {
  const auto target = std::make_shared<std::string>();
  CLI::App* command =
      app->add_subcommand("info", "what a checkpoint file holds, or what a server serves");
  AddServerOption(command, context);
  AddJsonOption(command, context, "print it as JSON, one object a line");
  command->add_option("target", *target,
                      "a .safetensors or .pth file, or host:port; else the server");
  command->callback([target, context] {
    context->run = [target, context] {
      if (!target->empty() && !LooksLikeServer(*target)) return InfoOfFile(*target, context);
      if (!target->empty()) context->server = *target;
      return InfoOfServer(context);
    };
  });
}

}  // namespace skein::client
