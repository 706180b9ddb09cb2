// skein score: how probable texts are after a prompt or a conversation.

#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"
#include "engine/tokenizer.h"

namespace skein::client {
namespace {

struct Options {
  std::string prompt, prompt_file, file;
  std::vector<std::string> continuations;
  v1::ScoreRequest request;
  bool tokens = false;
  double deadline = 0;
  CLI::Option* has_prompt = nullptr;
};

grpc::Status FillRequest(const Options& options, Terminal* terminal, v1::ScoreRequest* request) {
  std::string text;
  if (options.has_prompt->count() > 0 || !options.prompt_file.empty()) {
    const grpc::Status status = ReadInput(options.prompt, options.has_prompt->count() > 0,
                                          options.prompt_file, true, terminal, &text);
    if (!status.ok()) return status;
    request->mutable_text()->set_text(text);
  }
  for (const std::string& continuation : options.continuations) {
    if (!engine::IsValidUtf8(continuation))
      return FromAbsl(absl::InvalidArgumentError("the text is not UTF-8"));
    request->add_continuations()->mutable_text()->set_text(continuation);
  }
  if (!options.continuations.empty()) return grpc::Status::OK;
  const grpc::Status status = ReadInput("", false, options.file, true, terminal, &text);
  if (status.ok()) request->add_continuations()->mutable_text()->set_text(text);
  return status;
}

// Sums up one continuation and prints it when it is complete.
class Printer {
 public:
  Printer(const Options& options, Terminal* terminal) : options_(options), terminal_(terminal) {}

  void Add(const v1::ScoreResponse& response) {
    for (const v1::ScoredToken& token : response.tokens()) {
      ++count_;
      bytes_ += token.bytes().size();
      absl::StrAppend(&text_, token.bytes());
      if (!options_.tokens) continue;
      terminal_->Line(absl::StrFormat("%6d  %s  %.4f%s", token.id(), Quoted(token.bytes()),
                                      token.logprob(), token.is_greedy() ? "  *" : ""));
    }
    if (response.has_total_logprob()) Total(response);
  }

 private:
  void Total(const v1::ScoreResponse& response) {
    const double total = response.total_logprob();
    std::string line = absl::StrFormat("%12.4f  %d tokens", total, count_);
    if (count_ > 0) absl::StrAppendFormat(&line, ", perplexity %.3f", std::exp(-total / count_));
    if (bytes_ > 0)
      absl::StrAppendFormat(&line, ", %.3f bits per byte", -total / std::log(2.0) / bytes_);
    terminal_->Line(absl::StrCat(line, response.is_greedy() ? ", greedy" : "", "  ",
                                 Quoted(Preview(text_, 60))));
    count_ = 0;
    bytes_ = 0;
    text_.clear();
  }

  const Options& options_;
  Terminal* const terminal_;
  int64_t count_ = 0, bytes_ = 0;
  std::string text_;
};

grpc::Status Run(const Options& options, Context* context) {
  v1::ScoreRequest request = options.request;
  const grpc::Status status = FillRequest(options, context->terminal, &request);
  if (!status.ok()) return status;
  grpc::ClientContext call;
  if (options.deadline > 0) {
    call.set_deadline(std::chrono::system_clock::now() +
                      std::chrono::milliseconds(static_cast<int64_t>(options.deadline * 1e3)));
  }
  Connection connection = context->Connect();
  const auto reader = connection.generation().Score(&call, request);
  Printer printer(options, context->terminal);
  v1::ScoreResponse response;
  while (reader->Read(&response)) {
    context->json ? context->PrintJson(response) : printer.Add(response);
  }
  return reader->Finish();
}

}  // namespace

void AddScore(CLI::App* app, Context* context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command =
      app->add_subcommand("score", "log-probabilities of texts after a prompt or a conversation");
  AddServerOption(command, context);
  AddJsonOption(command, context, "print each ScoreResponse as a line of JSON");
  command->add_option("text", options->continuations,
                      "texts to score, each on its own; else --file or a pipe");
  command->add_option("-f,--file", options->file, "score what is in a file ('-': standard input)")
      ->type_name("FILE");
  options->has_prompt =
      command->add_option("-p,--prompt", options->prompt, "what comes before each of them")
          ->type_name("TEXT");
  command->add_option("--prompt-file", options->prompt_file, "the same from a file")
      ->type_name("FILE")
      ->excludes(options->has_prompt);
  command
      ->add_option_function<std::string>(
          "-c,--conversation",
          [options](const std::string& v) { options->request.set_conversation_id(v); },
          "score after this conversation; it is not changed")
      ->type_name("ID");
  command
      ->add_option_function<int64_t>(
          "--base-version", [options](int64_t v) { options->request.set_base_version(v); },
          "at this version instead of the head")
      ->type_name("N");
  command->add_flag("--tokens", options->tokens,
                    "a line for each token; * marks the most probable one");
  command->add_option("--deadline", options->deadline, "gRPC deadline of the call")
      ->type_name("SECONDS");
  command->callback(
      [options, context] { context->run = [options, context] { return Run(*options, context); }; });
}

}  // namespace skein::client
