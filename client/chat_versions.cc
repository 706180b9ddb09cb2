// What a chat does with the versions of its conversation: another answer, a copy, a step back.

#include "absl/strings/str_cat.h"
#include "client/chat_session.h"
#include "client/format.h"

namespace skein::client {
namespace {

using Conversations = v1::Conversations::Stub;

}  // namespace

grpc::Status ChatSession::Regenerate() {
  if (conversation_.empty()) return NothingYet();
  v1::Conversation conversation;
  const grpc::Status status = GetConversation(v1::VIEW_HISTORY, &conversation);
  if (!status.ok()) return status;
  const v1::Version* head = HeadOf(conversation);
  if (head == nullptr || !head->prompt_state().empty()) return NothingYet();
  v1::GenerateRequest request = options_.request;
  request.set_base_version(head->parent());
  // The very tokens of the turn, so that the new answer follows the same input.
  if (head->input_token_ids_size() > 0)
    *request.mutable_token_ids()->mutable_ids() = head->input_token_ids();
  AddChatStops(&request);
  request.mutable_sampling()->clear_seed();  // the same seed would give the same answer
  return Turn(std::move(request));
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
    const v1::Version* head = HeadOf(conversation);
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

}  // namespace skein::client
