#include "client/chat_session.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "client/format.h"
#include "engine/tokenizer.h"

namespace skein::client {
namespace {

using Conversations = v1::Conversations::Stub;

}  // namespace

const v1::Version* HeadOf(const v1::Conversation& conversation) {
  for (const v1::Version& version : conversation.versions()) {
    if (version.id() == conversation.head_version()) return &version;
  }
  return nullptr;
}

grpc::Status NothingYet() {
  return FromAbsl(absl::FailedPreconditionError("nothing was said yet"));
}

ChatSession::ChatSession(Context* context, Connection* connection, Interrupts* interrupts,
                         ChatOptions options)
    : context_(context),
      terminal_(context->terminal),
      connection_(connection),
      interrupts_(interrupts),
      options_(std::move(options)),
      conversation_(options_.conversation),
      empty_(options_.conversation.empty()) {}

grpc::Status ChatSession::Open() {
  v1::ListModelsResponse models;
  grpc::Status status = connection_->Call(connection_->info(), &v1::Info::Stub::ListModels,
                                          v1::ListModelsRequest(), &models);
  if (!status.ok()) return status;
  const std::string& wanted = options_.request.model();
  for (const v1::Model& model : models.models()) {
    if (!wanted.empty() && model.name() != wanted) continue;
    model_ = model;
    break;
  }
  if (model_.name().empty()) {
    return FromAbsl(absl::NotFoundError(
        wanted.empty() ? std::string("the server serves no model")
                       : absl::StrCat("the server does not serve a model '", wanted, "'")));
  }
  if (terminal_->interactive()) Greet();
  if (!has_template() && !context_->json) {
    const std::string note =
        "This model has no chat template: what you type is text that it continues, as it stands.";
    terminal_->interactive() ? terminal_->Line(note)
                             : terminal_->Error(absl::StrCat("note: ", note));
  }
  const bool needs_template = !options_.system.empty() || !options_.thinking.empty();
  if (!has_template() && needs_template) {
    return FromAbsl(
        absl::FailedPreconditionError("--system and --thinking need a model with a chat template"));
  }
  return conversation_.empty() ? status : ShowWhereWeAre();
}

void ChatSession::Greet() {
  terminal_->Bold(absl::StrCat(model_.name(), " on ", context_->server));
  terminal_->Newline();
  terminal_->Dim(model_.description());
  if (!model_.about().empty()) terminal_->Line(model_.about());
  if (model_.examples_size() > 0) {
    terminal_->Line("Try:");
    for (const std::string& example : model_.examples())
      terminal_->Line(absl::StrCat("  ", example));
  }
  terminal_->Dim(
      model_.examples_size() > 0
          ? "/demo plays these, /help shows all commands, Ctrl-C stops an answer, /quit ends."
          : "/help shows the commands, Ctrl-C stops an answer, /quit ends.");
}

// Of a conversation that is continued.
grpc::Status ChatSession::ShowWhereWeAre() {
  v1::Conversation conversation;
  const grpc::Status status = GetConversation(v1::VIEW_HISTORY, &conversation);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND && options_.create) {
    empty_ = true;
    return grpc::Status::OK;
  }
  if (!status.ok()) return status;
  empty_ = conversation.head_version() == 0;
  if (!terminal_->interactive()) return status;
  terminal_->Dim(absl::StrCat("Continuing ", OneLine(conversation)));
  if (const v1::Version* head = HeadOf(conversation)) {
    if (!head->prompt_state().empty()) return status;
    terminal_->Dim(absl::StrCat("> ", Preview(WithoutTemplate(head->input()), 200)));
    terminal_->Dim(Preview(WithoutTemplate(head->output()), 400));
  }
  return status;
}

void ChatSession::Close() {
  if (conversation_.empty()) return;
  if (!used_) {
    if (made_here_) (void)DeleteConversation();  // a server that is gone has forgotten it anyway
    return;
  }
  const std::string server =
      context_->server == kDefaultServer ? "" : absl::StrCat(" --server ", context_->server);
  const std::string line =
      absl::StrCat("Conversation ", conversation_, ". Continue it with: skein chat", server,
                   " --conversation ", conversation_);
  terminal_->interactive() ? terminal_->Dim(line) : terminal_->Error(line);
}

grpc::Status ChatSession::DeleteConversation() {
  v1::DeleteConversationRequest request;
  request.set_id(conversation_);
  v1::DeleteConversationResponse response;
  return connection_->Call(connection_->conversations(), &Conversations::Delete, request,
                           &response);
}

// All pages of its history, if `view` wants it.
grpc::Status ChatSession::GetConversation(v1::View view, v1::Conversation* conversation) {
  return connection_->GetConversation(conversation_, view, conversation);
}

grpc::Status ChatSession::EnsureConversation() {
  if (!conversation_.empty()) return grpc::Status::OK;
  v1::Conversation conversation;
  const grpc::Status status =
      connection_->Call(connection_->conversations(), &Conversations::Create,
                        v1::CreateConversationRequest(), &conversation);
  conversation_ = conversation.id();
  made_here_ = empty_ = true;
  used_ = false;
  return status;
}

// Rendered messages bring the template's stops; token ids and empty input do not.
void ChatSession::AddChatStops(v1::GenerateRequest* request) const {
  for (const std::string& stop : model_.chat_stops())
    request->mutable_stopping()->add_stop_strings(stop);
}

void ChatSession::ShowAnswer(const v1::GenerateResponse& response, Shown* shown) {
  if (context_->json) {
    context_->PrintJson(response);
  } else if (response.has_queued()) {
    terminal_->Transient(
        absl::StrCat("waiting, ", response.queued().position(), " before this one"));
  } else if (response.has_progress()) {
    terminal_->Transient(absl::StrCat("reading ", response.progress().prefill_done(), " of ",
                                      response.progress().prefill_total(), " tokens"));
  } else if (response.has_delta()) {
    if (terminal_->interactive() && !response.delta().reasoning().empty()) {
      terminal_->Faint(response.delta().reasoning());
      shown->thinks = true;
    }
    absl::string_view text = response.delta().text();
    // "Assistant:" is followed by a space or a newline that belongs to the template.
    if (!shown->begun && has_template()) text = absl::StripLeadingAsciiWhitespace(text);
    if (text.empty()) return;
    if (shown->thinks) terminal_->Newline();
    terminal_->Text(text);
    *shown = {.begun = true, .thinks = false};
  }
}

grpc::Status ChatSession::Turn(v1::GenerateRequest request) {
  grpc::Status status = EnsureConversation();
  if (!status.ok()) return status;
  request.set_conversation_id(conversation_);
  request.set_create_if_missing(options_.create);
  // What is on the screen is what the conversation holds, also after Ctrl-C.
  request.set_commit(v1::COMMIT_MODE_KEEP_PARTIAL);
  StreamResult result;
  Shown shown;
  last_.Clear();
  status = RunGenerate(
      *connection_, std::move(request), std::chrono::duration<double>(options_.deadline),
      interrupts_, [&](const v1::GenerateResponse& response) { ShowAnswer(response, &shown); },
      &result);
  if (!context_->json && (shown.begun || shown.thinks || status.ok())) terminal_->Newline();
  if (!status.ok()) return status;
  last_ = *result.finished;
  ++turns_;
  tokens_ += last_.usage().completion_tokens();
  used_ = true;
  empty_ = false;
  if (context_->json) return status;
  const std::string summary = Summary(last_, true);
  if (terminal_->interactive()) {
    terminal_->Dim(summary);
  } else if (options_.stats) {
    terminal_->Error(summary);
  }
  return status;
}

grpc::Status ChatSession::Say(const std::string& text) {
  if (!engine::IsValidUtf8(text))
    return FromAbsl(absl::InvalidArgumentError("what was typed is not UTF-8"));
  v1::GenerateRequest request = options_.request;
  if (empty_) request.set_prompt_state(options_.prompt_state);
  if (!has_template()) {
    request.mutable_text()->set_text(text);
    return Turn(std::move(request));
  }
  const auto add = [&](v1::Role role, const std::string& content) {
    v1::Message* message = request.mutable_messages()->add_messages();
    message->set_role(role);
    message->set_content(content);
  };
  if (!options_.thinking.empty()) request.set_thinking(options_.thinking);
  if (empty_ && !options_.system.empty()) add(v1::ROLE_SYSTEM, options_.system);
  add(v1::ROLE_USER, text);
  return Turn(std::move(request));
}

grpc::Status ChatSession::More() {
  if (conversation_.empty()) return NothingYet();
  v1::GenerateRequest request = options_.request;
  AddChatStops(&request);
  return Turn(std::move(request));
}

void ChatSession::Say(absl::string_view note, const google::protobuf::Message& message) {
  if (context_->json) {
    context_->PrintJson(message);
  } else {
    terminal_->Line(note);
  }
}

}  // namespace skein::client
