// What a chat shows of itself and of the model: figures, the demo, a new beginning.

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/chat_session.h"
#include "client/errors.h"
#include "client/format.h"

namespace skein::client {
namespace {

std::string Milliseconds(const google::protobuf::Duration& d) {
  return absl::StrFormat("%.1f ms", d.seconds() * 1e3 + d.nanos() * 1e-6);
}

}  // namespace

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
