// skein generate: one Generate call, from text or token ids.

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/answer_printer.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"
#include "client/generation_flags.h"
#include "client/stream.h"

namespace skein::client {
namespace {

struct Options {
  v1::GenerateRequest request;
  std::string prompt, file, system;
  std::vector<int32_t> prompt_ids;
  bool chat = false;
  bool go_on = false;
  bool stats = false;
  double deadline = 0;
  CLI::Option* has_prompt = nullptr;
};

grpc::Status SetInput(const Options& options, Terminal* terminal, v1::GenerateRequest* request) {
  if (options.go_on) return grpc::Status::OK;
  if (!options.prompt_ids.empty()) {
    for (const int32_t id : options.prompt_ids) request->mutable_token_ids()->add_ids(id);
    return grpc::Status::OK;
  }
  std::string text;
  const grpc::Status status = ReadInput(options.prompt, options.has_prompt->count() > 0,
                                        options.file, true, terminal, &text);
  if (!status.ok()) return status;
  if (!options.chat) {
    request->mutable_text()->set_text(text);
    return grpc::Status::OK;
  }
  const auto add = [&](v1::Role role, const std::string& content) {
    v1::Message* message = request->mutable_messages()->add_messages();
    message->set_role(role);
    message->set_content(content);
  };
  if (!options.system.empty()) add(v1::ROLE_SYSTEM, options.system);
  add(v1::ROLE_USER, text);
  return grpc::Status::OK;
}

grpc::Status Run(const Options& options, Context* context) {
  v1::GenerateRequest request = options.request;
  grpc::Status status = SetInput(options, context->terminal, &request);
  if (!status.ok()) return status;
  const v1::Output& output = request.output();
  const bool tokens = output.token_ids() || output.logprobs() || output.has_top_logprobs();
  Connection connection = context->Connect();
  Interrupts interrupts;
  StreamResult result;
  const bool several = request.num_sequences() > 1;
  AnswerPrinter printer(context->terminal, request.num_sequences(), tokens);
  status = RunGenerate(
      connection, request, std::chrono::duration<double>(options.deadline), &interrupts,
      [&](const v1::GenerateResponse& response) {
        context->json ? context->PrintJson(response) : printer.Print(response);
        if (context->json || !several || !options.stats || !response.has_finished()) return;
        const v1::Finished& finished = response.finished();
        context->terminal->Error(absl::StrCat(finished.index(), ": ", Summary(finished, false)));
      },
      &result);
  Terminal* terminal = context->terminal;
  printer.End();
  if (!status.ok()) return status;
  const bool in_conversation = !result.started->conversation_id().empty();
  if (!context->json && !several && (options.stats || terminal->interactive())) {
    std::string line = Summary(*result.finished, in_conversation);
    if (in_conversation && result.finished->committed()) {
      absl::StrAppend(&line, ", conversation ", result.started->conversation_id(), " version ",
                      result.finished->version());
    }
    terminal->interactive() ? terminal->Dim(line) : terminal->Error(line);
  }
  if (result.finished->reason() == v1::FINISH_REASON_CANCELLED)
    context->exit_code = kExitInterrupted;
  return grpc::Status::OK;
}

void AddInputFlags(CLI::App* command, Options* options) {
  options->has_prompt =
      command->add_option("prompt", options->prompt, "the text to continue; else --file or a pipe");
  command->add_option("-f,--file", options->file, "read the text from a file ('-': standard input)")
      ->type_name("FILE");
  command->add_option("--prompt-ids", options->prompt_ids, "token ids in place of text")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("ID,...");
  CLI::Option* chat =
      command->add_flag("--chat", options->chat,
                        "send the text as a user's message through the model's chat template");
  AddThinkingFlag(command, [options](const std::string& mode) {
    options->request.set_thinking(mode);
  })->needs(chat);
  command->add_option("--system", options->system, "with --chat: what the system says first")
      ->type_name("TEXT")
      ->needs(chat);
  AddPromptStateFlag(
      command, [options](const std::string& name) { options->request.set_prompt_state(name); });
  command->add_flag("--go-on", options->go_on,
                    "add nothing: continue the conversation from where it is");
}

void AddConversationFlags(CLI::App* command, v1::GenerateRequest* request) {
  static const std::map<std::string, v1::CommitMode> kModes = {
      {"success", v1::COMMIT_MODE_ON_SUCCESS},
      {"partial", v1::COMMIT_MODE_KEEP_PARTIAL},
      {"never", v1::COMMIT_MODE_NEVER}};
  const auto group = [](CLI::Option* option, const char* type) {
    option->group("Conversation")->type_name(type);
  };
  group(
      command->add_option_function<std::string>(
          "-c,--conversation", [request](const std::string& v) { request->set_conversation_id(v); },
          "append to this conversation"),
      "ID");
  command
      ->add_flag_callback(
          "--create", [request] { request->set_create_if_missing(true); },
          "make the conversation when there is none")
      ->group("Conversation");
  group(command->add_option_function<int64_t>(
            "--base-version", [request](int64_t v) { request->set_base_version(v); },
            "continue from this version instead of the head"),
        "N");
  group(command->add_option_function<int64_t>(
            "--expected-version", [request](int64_t v) { request->set_expected_version(v); },
            "fail unless the head is this version"),
        "N");
  group(command
            ->add_option_function<std::string>(
                "--commit", [request](const std::string& v) { request->set_commit(kModes.at(v)); },
                "what is kept: success (default), partial (also when cut short), never")
            ->check(CLI::IsMember({"success", "partial", "never"})),
        "WHEN");
}

void AddOutputFlags(CLI::App* command, v1::GenerateRequest* request) {
  const auto output = [request] { return request->mutable_output(); };
  command
      ->add_flag_callback(
          "--token-ids", [output] { output()->set_token_ids(true); },
          "print a line for each token: id and text")
      ->group("Output");
  command
      ->add_flag_callback(
          "--logprobs", [output] { output()->set_logprobs(true); }, "and its log-probability")
      ->group("Output");
  command
      ->add_option_function<int32_t>(
          "--top-logprobs", [output](int32_t v) { output()->set_top_logprobs(v); },
          "and the most probable tokens at its place")
      ->group("Output")
      ->type_name("N");
  command
      ->add_flag_callback(
          "--prompt-logprobs", [output] { output()->set_prompt_logprobs(true); },
          "print the input's tokens with their log-probabilities first")
      ->group("Output");
  command
      ->add_option_function<int32_t>(
          "--num-sequences", [request](int32_t v) { request->set_num_sequences(v); },
          "so many answers, each printed when it has ended; in a conversation each becomes a copy "
          "of it")
      ->group("Output")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
}

}  // namespace

void AddGenerate(CLI::App* app, Context* context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand("generate", "continue a text");
  AddServerOption(command, context);
  AddJsonOption(command, context, "print each GenerateResponse as a line of JSON");
  AddInputFlags(command, options.get());
  AddConversationFlags(command, &options->request);
  AddSamplingFlags(command, &options->request);
  AddStoppingFlags(command, &options->request);
  AddOutputFlags(command, &options->request);
  command->add_flag("--stats", options->stats, "tokens and speed at the end (on a terminal always)")
      ->group("Output");
  command->add_option("--deadline", options->deadline, "gRPC deadline of the call")
      ->type_name("SECONDS");
  command
      ->add_option_function<std::string>(
          "--model", [options](const std::string& v) { options->request.set_model(v); },
          "model name")
      ->type_name("NAME");
  command
      ->add_option_function<std::string>(
          "--request-id", [options](const std::string& v) { options->request.set_request_id(v); },
          "for Cancel and the server's logs")
      ->type_name("ID");
  command->callback(
      [options, context] { context->run = [options, context] { return Run(*options, context); }; });
}

}  // namespace skein::client
