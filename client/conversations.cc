// skein conversations list | get | history | create | delete | fork | rewind

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"

namespace skein::client {
namespace {

using Stub = v1::Conversations::Stub;

struct Options {
  std::string id, prefix, from;
  std::optional<int64_t> version;
  int count = 1;
  std::vector<std::string> ids, new_ids;
};

void Show(const v1::Conversation& conversation, Context* context) {
  context->json ? context->PrintJson(conversation) : context->terminal->Line(OneLine(conversation));
}

grpc::Status List(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::ListConversationsRequest request;
  request.set_id_prefix(options.prefix);
  do {
    v1::ListConversationsResponse response;
    const grpc::Status status =
        connection.Call(connection.conversations(), &Stub::List, request, &response);
    if (!status.ok()) return status;
    for (const v1::Conversation& conversation : response.conversations())
      Show(conversation, context);
    request.set_page_token(response.next_page_token());
  } while (!request.page_token().empty());
  return grpc::Status::OK;
}

grpc::Status Get(const Options& options, Context* context, v1::View view,
                 v1::Conversation* conversation) {
  return context->Connect().GetConversation(options.id, view, conversation);
}

grpc::Status ShowOne(const Options& options, Context* context) {
  v1::Conversation conversation;
  const grpc::Status status = Get(options, context, v1::VIEW_BASIC, &conversation);
  if (!status.ok()) return status;
  Show(conversation, context);
  if (!context->json && !conversation.last_request_id().empty()) {
    context->terminal->Line(absl::StrCat("last request ", conversation.last_request_id(), ": ",
                                         conversation.last_end()));
  }
  return status;
}

grpc::Status ShowHistory(const Options& options, Context* context) {
  v1::Conversation conversation;
  const grpc::Status status = Get(options, context, v1::VIEW_HISTORY, &conversation);
  if (!status.ok()) return status;
  if (context->json) {
    context->PrintJson(conversation);
    return status;
  }
  Terminal* terminal = context->terminal;
  terminal->Line(OneLine(conversation));
  for (const v1::Version& version : conversation.versions()) {
    const bool head = version.id() == conversation.head_version();
    terminal->Dim(absl::StrCat("-- version ", version.id(), head ? " (head)" : "", ", after ",
                               version.parent(), ", ", LocalTime(version.time()), ", ",
                               version.tokens(), " tokens, ",
                               FinishReasonName(version.finish_reason()),
                               version.has_state() ? "" : ", state rebuilt when asked for"));
    terminal->Text(version.input());
    terminal->Bold(version.output());
    terminal->Newline();
  }
  return status;
}

grpc::Status Create(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::CreateConversationRequest request;
  request.set_id(options.id);
  if (!options.from.empty()) request.mutable_conversation()->set_conversation_id(options.from);
  if (options.version) request.mutable_conversation()->set_version(*options.version);
  v1::Conversation conversation;
  const grpc::Status status =
      connection.Call(connection.conversations(), &Stub::Create, request, &conversation);
  if (status.ok()) Show(conversation, context);
  return status;
}

grpc::Status Delete(const Options& options, Context* context) {
  Connection connection = context->Connect();
  for (const std::string& id : options.ids) {
    v1::DeleteConversationRequest request;
    request.set_id(id);
    v1::DeleteConversationResponse response;
    const grpc::Status status =
        connection.Call(connection.conversations(), &Stub::Delete, request, &response);
    if (!status.ok()) return status;
    context->json ? context->PrintJson(request)
                  : context->terminal->Line(absl::StrCat("deleted ", id));
  }
  return grpc::Status::OK;
}

grpc::Status Fork(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::ForkConversationRequest request;
  request.set_id(options.id);
  if (options.version) request.set_version(*options.version);
  request.set_count(options.new_ids.empty() ? options.count
                                            : static_cast<int>(options.new_ids.size()));
  for (const std::string& id : options.new_ids) request.add_new_ids(id);
  v1::ForkConversationResponse response;
  const grpc::Status status =
      connection.Call(connection.conversations(), &Stub::Fork, request, &response);
  for (const v1::Conversation& conversation : response.conversations()) Show(conversation, context);
  return status;
}

grpc::Status Rewind(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::RewindConversationRequest request;
  request.set_id(options.id);
  request.set_version(options.version.value_or(0));
  v1::Conversation conversation;
  const grpc::Status status =
      connection.Call(connection.conversations(), &Stub::Rewind, request, &conversation);
  if (status.ok()) Show(conversation, context);
  return status;
}

class Group {
 public:
  Group(CLI::App* app, Context* context)
      : context_(context),
        options_(std::make_shared<Options>()),
        app_(app->add_subcommand("conversations",
                                 "what the server keeps: list, look, fork, rewind, delete")) {
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
  CLI::App* AddWithId(const char* name, const char* help, Run run) {
    CLI::App* command = Add(name, help, run);
    command->add_option("id", options_->id, "the conversation")->required();
    return command;
  }
  CLI::Option* AddVersion(CLI::App* command, const char* name, const char* help) {
    return command
        ->add_option_function<int64_t>(
            name, [options = options_](const int64_t& v) { options->version = v; }, help)
        ->type_name("N");
  }
  Options* options() { return options_.get(); }

 private:
  Context* const context_;
  const std::shared_ptr<Options> options_;
  CLI::App* const app_;
};

}  // namespace

void AddConversations(CLI::App* app, Context* context) {
  Group group(app, context);
  Options* options = group.options();
  group.Add("list", "all conversations", List)
      ->add_option("prefix", options->prefix, "only ids that begin like this");
  group.AddWithId("get", "one conversation: versions, size, how its last request ended", ShowOne);
  group.AddWithId("history", "all its versions with their text", ShowHistory);

  CLI::App* create =
      group.Add("create", "make an empty conversation, or a copy of another", Create);
  create->add_option("id", options->id, "its id; made by the server when not given");
  CLI::Option* from =
      create->add_option("--from", options->from, "copy this conversation")->type_name("ID");
  group.AddVersion(create, "--version", "at this version instead of its head")->needs(from);

  group.Add("delete", "delete conversations", Delete)
      ->add_option("id", options->ids, "the conversations")
      ->required();

  CLI::App* fork = group.AddWithId("fork", "copies that share the past", Fork);
  group.AddVersion(fork, "--version", "at this version instead of the head");
  CLI::Option* new_ids =
      fork->add_option("--new-id", options->new_ids, "id of a copy; may be repeated")
          ->allow_extra_args(false)
          ->type_name("ID");
  fork->add_option("--count", options->count, "how many")
      ->check(CLI::PositiveNumber)
      ->excludes(new_ids);

  CLI::App* rewind = group.AddWithId("rewind", "make a kept version the head again", Rewind);
  group.AddVersion(rewind, "version", "the version; 0: the empty conversation")->required();
}

}  // namespace skein::client
