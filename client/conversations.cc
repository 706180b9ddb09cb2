// skein conversations list | get | history | create | delete | fork | rewind

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/format.h"

namespace skein::client {
namespace {

using Stub = v1::Conversations::Stub;

struct Options {
  std::string id, prefix, from, prompt_state, model;
  v1::ListConversationsRequest filter;
  std::optional<int64_t> version;
  int count = 1;
  std::vector<std::string> ids, new_ids;
};

void Show(const v1::Conversation& conversation, Context* context) {
  context->json ? context->PrintJson(conversation) : context->terminal->Line(OneLine(conversation));
}

grpc::Status List(const Options& options, Context* context) {
  Connection connection = context->Connect();
  v1::ListConversationsRequest request = options.filter;
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
    terminal->Dim(absl::StrCat(
        "-- version ", version.id(), head ? " (head)" : "", ", after ", version.parent(), ", ",
        LocalTime(version.time()), ", ", version.tokens(), " tokens, ",
        version.prompt_state().empty() ? FinishReasonName(version.finish_reason())
                                       : absl::StrCat("prompt state ", version.prompt_state()),
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
  if (!options.prompt_state.empty()) request.set_prompt_state(options.prompt_state);
  request.set_model(options.model);
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

// A time (RFC 3339), a day, or how long ago.
void SetTime(const char* flag, const std::string& text, google::protobuf::Timestamp* out) {
  absl::Time time;
  absl::Duration ago;
  std::string error;
  const absl::TimeZone zone = absl::LocalTimeZone();
  if (absl::ParseDuration(text, &ago) && ago >= absl::ZeroDuration()) {
    time = absl::Now() - ago;
  } else if (!absl::ParseTime(absl::RFC3339_full, text, zone, &time, &error) &&
             !absl::ParseTime("%Y-%m-%d", text, zone, &time, &error)) {
    throw CLI::ValidationError(
        flag,
        absl::StrCat("'", text, "' is no time: 2026-01-31, 2026-01-31T18:00:00Z, or 90m ago"));
  }
  const int64_t seconds = absl::ToUnixSeconds(time);
  out->set_seconds(seconds);
  out->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(time - absl::FromUnixSeconds(seconds))));
}

void AddFilters(CLI::App* list, v1::ListConversationsRequest* filter) {
  CLI::Option* busy = list->add_flag_callback(
      "--busy", [filter] { filter->set_busy(true); }, "in use by a request");
  list->add_flag_callback(
          "--idle", [filter] { filter->set_busy(false); }, "not in use")
      ->excludes(busy);
  CLI::Option* with_state = list->add_flag_callback(
      "--with-state", [filter] { filter->set_has_state(true); }, "the head's state is kept");
  list->add_flag_callback(
          "--without-state", [filter] { filter->set_has_state(false); },
          "it is rebuilt from the tokens when asked for")
      ->excludes(with_state);
  list->add_option_function<std::string>(
          "--used-since",
          [filter](const std::string& v) {
            SetTime("--used-since", v, filter->mutable_used_since());
          },
          "used at or after this time: a day, an RFC 3339 time, or how long ago (90m, 12h)")
      ->type_name("TIME");
  list->add_option_function<std::string>(
          "--used-before",
          [filter](const std::string& v) {
            SetTime("--used-before", v, filter->mutable_used_before());
          },
          "not used since then")
      ->type_name("TIME");
}

}  // namespace

void AddConversations(CLI::App* app, Context* context) {
  Group group(app, context);
  Options* options = group.options();
  CLI::App* list = group.Add("list", "all conversations, or those that match all flags", List);
  list->add_option("prefix", options->prefix, "only ids that begin like this");
  AddFilters(list, &options->filter);
  group.AddWithId("get", "one conversation: versions, size, how its last request ended", ShowOne);
  group.AddWithId("history", "all its versions with their text", ShowHistory);

  CLI::App* create =
      group.Add("create", "make a conversation: empty, a copy, or with a prompt state", Create);
  create->add_option("id", options->id, "its id; made by the server when not given");
  CLI::Option* from =
      create->add_option("--from", options->from, "copy this conversation")->type_name("ID");
  group.AddVersion(create, "--version", "at this version instead of its head")->needs(from);
  CLI::Option* prompt_state =
      create->add_option("--prompt-state", options->prompt_state, "begin with this prompt state")
          ->excludes(from)
          ->type_name("NAME");
  create->add_option("--model", options->model, "of this model instead of the default")
      ->needs(prompt_state)
      ->type_name("NAME");

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
