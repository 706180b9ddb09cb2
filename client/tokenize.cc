// skein tokenize: text to token ids and back, by the server's model or by a vocabulary file.

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"
#include "engine/tokenizer.h"

namespace skein::client {
namespace {

struct Options {
  std::string text, file, vocabulary;
  std::vector<int32_t> decode;
  bool chat = false;
  bool ids_only = false;
  CLI::Option* has_text = nullptr;
};

absl::StatusOr<std::unique_ptr<engine::Tokenizer>> Offline(const std::string& vocabulary) {
  if (vocabulary == "bytes") return engine::NewByteTokenizer();
  return engine::LoadWorldVocabulary(vocabulary);
}

grpc::Status EncodeOffline(const std::string& vocabulary, const std::string& text,
                           v1::TokenizeResponse* response) {
  const auto tokenizer = Offline(vocabulary);
  if (!tokenizer.ok()) return FromAbsl(tokenizer.status());
  for (const int32_t id : (*tokenizer)->Encode(text)) {
    response->add_ids(id);
    response->add_pieces(std::string((*tokenizer)->Bytes(id)));
  }
  return grpc::Status::OK;
}

grpc::Status EncodeByServer(const Options& options, const std::string& text, Context* context,
                            v1::TokenizeResponse* response) {
  v1::TokenizeRequest request;
  if (options.chat) {
    v1::Message* message = request.mutable_messages()->add_messages();
    message->set_role(v1::ROLE_USER);
    message->set_content(text);
  } else {
    request.set_bytes(text);
  }
  Connection connection = context->Connect();
  return connection.Call(connection.generation(), &v1::Generation::Stub::Tokenize, request,
                         response);
}

grpc::Status Encode(const Options& options, Context* context) {
  std::string text;
  grpc::Status status = ReadInput(options.text, options.has_text->count() > 0, options.file,
                                  options.chat, context->terminal, &text);
  if (!status.ok()) return status;
  v1::TokenizeResponse response;
  status = options.vocabulary.empty() ? EncodeByServer(options, text, context, &response)
                                      : EncodeOffline(options.vocabulary, text, &response);
  if (!status.ok()) return status;
  Terminal* terminal = context->terminal;
  if (context->json) {
    context->PrintJson(response);
  } else if (options.ids_only) {
    terminal->Line(absl::StrJoin(response.ids(), ","));
  } else {
    for (int i = 0; i < response.ids_size(); ++i) {
      terminal->Line(absl::StrFormat("%6d  %s", response.ids(i), Quoted(response.pieces(i))));
    }
  }
  return status;
}

grpc::Status Decode(const Options& options, Context* context) {
  v1::DetokenizeResponse response;
  if (options.vocabulary.empty()) {
    v1::DetokenizeRequest request;
    for (const int32_t id : options.decode) request.add_ids(id);
    Connection connection = context->Connect();
    const grpc::Status status = connection.Call(
        connection.generation(), &v1::Generation::Stub::Detokenize, request, &response);
    if (!status.ok()) return status;
  } else {
    const auto tokenizer = Offline(options.vocabulary);
    if (!tokenizer.ok()) return FromAbsl(tokenizer.status());
    for (const int32_t id : options.decode) {
      if ((*tokenizer)->IsValid(id)) continue;
      return FromAbsl(
          absl::InvalidArgumentError(absl::StrCat("token id ", id, " stands for nothing")));
    }
    response.set_bytes((*tokenizer)->Decode(options.decode));
    engine::Utf8Stream stream;
    stream.Push(response.bytes(), response.mutable_text());
    stream.Finish(response.mutable_text());
  }
  Terminal* terminal = context->terminal;
  if (context->json) {
    context->PrintJson(response);
  } else if (terminal->output_is_terminal()) {
    terminal->Line(response.text());
  } else {
    terminal->Raw(response.bytes());
  }
  return grpc::Status::OK;
}

}  // namespace

void AddTokenize(CLI::App* app, Context* context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand("tokenize", "text to token ids and back");
  AddServerOption(command, context);
  AddJsonOption(command, context, "print the answer as a line of JSON");
  options->has_text = command->add_option("text", options->text, "the text; else --file or a pipe");
  command->add_option("-f,--file", options->file, "read the text from a file ('-': standard input)")
      ->type_name("FILE");
  CLI::Option* vocabulary = command
                                ->add_option("--vocabulary", options->vocabulary,
                                             "without a server: a World-format file, or 'bytes'")
                                ->type_name("FILE");
  command
      ->add_flag("--chat", options->chat, "as a user's message, through the model's chat template")
      ->excludes(vocabulary);
  command->add_flag("--ids", options->ids_only, "only the ids, with commas");
  command->add_option("--decode", options->decode, "the other way: ids to text")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->type_name("ID,...")
      ->excludes(options->has_text);
  command->callback([options, context] {
    context->run = [options, context] {
      return options->decode.empty() ? Encode(*options, context) : Decode(*options, context);
    };
  });
}

}  // namespace skein::client
