#include "client/chat_session.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/errors.h"
#include "client/format.h"
#include "engine/tokenizer.h"

namespace skein::client {
namespace {

using Conversations = v1::Conversations::Stub;

const v1::Version* FindVersion(const v1::Conversation& conversation, int64_t id) {
  for (const v1::Version& version : conversation.versions()) {
    if (version.id() == id) return &version;
  }
  return nullptr;
}

grpc::Status NothingYet() {
  return FromAbsl(absl::FailedPreconditionError("nothing was said yet"));
}

std::string Milliseconds(const google::protobuf::Duration& d) {
  return absl::StrFormat("%.1f ms", d.seconds() * 1e3 + d.nanos() * 1e-6);
}

}  // namespace

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
  if (!has_template() && !options_.system.empty()) {
    return FromAbsl(absl::FailedPreconditionError("--system needs a model with a chat template"));
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
  if (const v1::Version* head = FindVersion(conversation, conversation.head_version())) {
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

grpc::Status ChatSession::GetConversation(v1::View view, v1::Conversation* conversation) {
  v1::GetConversationRequest request;
  request.set_id(conversation_);
  request.set_view(view);
  return connection_->Call(connection_->conversations(), &Conversations::Get, request,
                           conversation);
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

void ChatSession::ShowAnswer(const v1::GenerateResponse& response, bool* begun) {
  if (context_->json) {
    context_->PrintJson(response);
  } else if (response.has_queued()) {
    terminal_->Transient(
        absl::StrCat("waiting, ", response.queued().position(), " before this one"));
  } else if (response.has_progress()) {
    terminal_->Transient(absl::StrCat("reading ", response.progress().prefill_done(), " of ",
                                      response.progress().prefill_total(), " tokens"));
  } else if (response.has_delta()) {
    absl::string_view text = response.delta().text();
    // "Assistant:" is followed by a space or a newline that belongs to the template.
    if (!*begun && has_template()) text = absl::StripLeadingAsciiWhitespace(text);
    terminal_->Text(text);
    *begun = *begun || !text.empty();
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
  bool begun = false;
  last_.Clear();
  status = RunGenerate(
      *connection_, std::move(request), std::chrono::duration<double>(options_.deadline),
      interrupts_, [&](const v1::GenerateResponse& response) { ShowAnswer(response, &begun); },
      &result);
  if (!context_->json && (begun || status.ok())) terminal_->Newline();
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
  if (!has_template()) {
    request.mutable_text()->set_text(text);
    return Turn(std::move(request));
  }
  const auto add = [&](v1::Role role, const std::string& content) {
    v1::Message* message = request.mutable_messages()->add_messages();
    message->set_role(role);
    message->set_content(content);
  };
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

grpc::Status ChatSession::Regenerate() {
  if (conversation_.empty()) return NothingYet();
  v1::Conversation conversation;
  const grpc::Status status = GetConversation(v1::VIEW_HISTORY, &conversation);
  if (!status.ok()) return status;
  const v1::Version* head = FindVersion(conversation, conversation.head_version());
  if (head == nullptr) return NothingYet();
  v1::GenerateRequest request = options_.request;
  request.set_base_version(head->parent());
  // The very tokens of the turn, so that the new answer follows the same input.
  if (head->input_token_ids_size() > 0)
    *request.mutable_token_ids()->mutable_ids() = head->input_token_ids();
  AddChatStops(&request);
  request.mutable_sampling()->clear_seed();  // the same seed would give the same answer
  return Turn(std::move(request));
}

void ChatSession::Say(absl::string_view note, const google::protobuf::Message& message) {
  if (context_->json) {
    context_->PrintJson(message);
  } else {
    terminal_->Line(note);
  }
}

grpc::Status ChatSession::Fork(int64_t version) {
  if (conversation_.empty()) return NothingYet();
  v1::ForkConversationRequest request;
  request.set_id(conversation_);
  if (version >= 0) request.set_version(version);
  v1::ForkConversationResponse response;
  const grpc::Status status =
      connection_->Call(connection_->conversations(), &Conversations::Fork, request, &response);
  if (!status.ok()) return status;
  if (response.conversations_size() != 1) {
    return grpc::Status(grpc::StatusCode::INTERNAL,
                        "the server answered Fork with no conversation");
  }
  const std::string& copy = response.conversations(0).id();
  Say(absl::StrCat("Now in the copy ", copy, "; ", conversation_, " stays as it was."), response);
  conversation_ = copy;
  empty_ = response.conversations(0).head_version() == 0;
  used_ = true;  // so that Close tells its id
  return status;
}

grpc::Status ChatSession::Rewind(int64_t version) {
  if (conversation_.empty()) return NothingYet();
  if (version < 0) {
    v1::Conversation conversation;
    const grpc::Status status = GetConversation(v1::VIEW_HISTORY, &conversation);
    if (!status.ok()) return status;
    const v1::Version* head = FindVersion(conversation, conversation.head_version());
    if (head == nullptr) return NothingYet();
    version = head->parent();
  }
  v1::RewindConversationRequest request;
  request.set_id(conversation_);
  request.set_version(version);
  v1::Conversation conversation;
  const grpc::Status status = connection_->Call(connection_->conversations(),
                                                &Conversations::Rewind, request, &conversation);
  if (!status.ok()) return status;
  empty_ = conversation.head_version() == 0;
  Say(absl::StrCat("Back at version ", conversation.head_version(), ", ", conversation.tokens(),
                   " tokens. Later versions stay: /versions shows them."),
      conversation);
  return status;
}

grpc::Status ChatSession::Versions() {
  if (conversation_.empty()) return NothingYet();
  v1::Conversation conversation;
  const grpc::Status status = GetConversation(v1::VIEW_HISTORY, &conversation);
  if (!status.ok()) return status;
  if (context_->json) {
    context_->PrintJson(conversation);
    return status;
  }
  terminal_->Line(OneLine(conversation));
  for (const v1::Version& version : conversation.versions()) {
    terminal_->Line(OneLine(version, version.id() == conversation.head_version()));
  }
  return status;
}

grpc::Status ChatSession::Stats() {
  v1::ServerInfo info;
  grpc::Status status = connection_->Call(connection_->info(), &v1::Info::Stub::GetServerInfo,
                                          v1::GetServerInfoRequest(), &info);
  if (!status.ok()) return status;
  Say(absl::StrCat("server: skeind ", info.version(), ", ", info.device(), " ", info.device_tier(),
                   ", ", info.slots(), " slots, up ", info.uptime().seconds(), " s"),
      info);
  if (!conversation_.empty()) {
    v1::Conversation conversation;
    status = GetConversation(v1::VIEW_BASIC, &conversation);
    if (!status.ok()) return status;
    Say(absl::StrCat("conversation: ", OneLine(conversation)), conversation);
  }
  if (turns_ == 0) return status;
  const v1::Timings& t = last_.timings();
  Say(absl::StrCat("last answer: ", Summary(last_, true), "; input ", last_.usage().prompt_tokens(),
                   " tokens, ", last_.usage().reused_tokens(), " reused; queue ",
                   Milliseconds(t.queue()), ", restore ", Milliseconds(t.restore()), ", prefill ",
                   Milliseconds(t.prefill()), ", decode ", Milliseconds(t.decode())),
      last_);
  if (!context_->json)
    terminal_->Line(absl::StrCat("this chat: ", turns_, " answers, ", tokens_, " tokens"));
  return status;
}

grpc::Status ChatSession::Demo() {
  if (model_.examples_size() == 0) {
    return FromAbsl(absl::FailedPreconditionError("this model brings no examples"));
  }
  const std::string own = std::exchange(conversation_, "");
  const bool own_used = used_, own_made = made_here_;
  const bool own_empty = std::exchange(empty_, true);
  if (!context_->json)
    terminal_->Dim("A dialogue of its own; each line is one call that carries only the new text.");
  grpc::Status status;
  for (const std::string& example : model_.examples()) {
    if (!context_->json) {
      terminal_->Bold(absl::StrCat("> ", example));
      terminal_->Newline();
    }
    status = Say(example);
    if (!status.ok() || cancelled()) break;
  }
  if (!conversation_.empty()) {
    const grpc::Status deleted = DeleteConversation();
    if (status.ok()) status = deleted;
  }
  conversation_ = own;
  empty_ = own_empty;
  used_ = own_used;
  made_here_ = own_made;
  if (status.ok() && !context_->json) terminal_->Dim("End of the demo.");
  return status;
}

grpc::Status ChatSession::New() {
  Close();
  conversation_.clear();
  empty_ = true;
  if (!context_->json) terminal_->Line("A new conversation begins with your next message.");
  return grpc::Status::OK;
}

}  // namespace skein::client
