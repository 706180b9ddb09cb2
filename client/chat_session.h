#pragma once
// A chat with one model: the conversation that it stands in, and what each command does. Every
// function makes its calls, prints what they say and returns the status of the first that failed.
// One thread.

#include <string>

#include "client/command.h"
#include "client/interrupt.h"
#include "client/stream.h"

namespace skein::client {

struct ChatOptions {
  v1::GenerateRequest request;  // sampling, stopping and model of every turn
  std::string conversation;     // empty: a new one, made with the first message
  std::string system;           // said first in a new conversation
  std::string prompt_state;     // which a new conversation begins with
  std::string thinking;         // of every answer; empty: the server's default
  bool create = false;
  bool stats = false;
  double deadline = 0;
};

// The version that it stands at; null: it is empty. Needs the view HISTORY.
const v1::Version* HeadOf(const v1::Conversation& conversation);
// The status of what needs an answer before it.
grpc::Status NothingYet();

// Talking is in chat_session.cc, going through versions in chat_versions.cc, the rest in
// chat_extras.cc.
class ChatSession {
 public:
  ChatSession(Context* context, Connection* connection, Interrupts* interrupts,
              ChatOptions options);

  // Asks the server for the model and the conversation, and says what can be done here.
  grpc::Status Open();
  // Says how to come back; removes a conversation in which nothing was said.
  void Close();

  grpc::Status Say(const std::string& text);
  grpc::Status More();        // go on where the answer ended
  grpc::Status Regenerate();  // another answer to the last message; the old one stays a version
  grpc::Status Fork(int64_t version);    // < 0: the head. Goes on in the copy
  grpc::Status Rewind(int64_t version);  // < 0: to before the last turn
  grpc::Status Versions();
  grpc::Status Stats();
  grpc::Status Demo();
  grpc::Status New();

  // The last answer was stopped with Ctrl-C.
  bool cancelled() const { return last_.reason() == v1::FINISH_REASON_CANCELLED; }

 private:
  bool has_template() const {
    return model_.chat_template() != "none" && !model_.chat_template().empty();
  }
  void Greet();
  grpc::Status ShowWhereWeAre();
  grpc::Status EnsureConversation();
  grpc::Status DeleteConversation();
  grpc::Status GetConversation(v1::View view, v1::Conversation* conversation);
  // Runs one turn and prints the answer. `request` has its input and nothing else.
  grpc::Status Turn(v1::GenerateRequest request);
  void AddChatStops(v1::GenerateRequest* request) const;
  struct Shown {
    bool begun = false;   // something of the answer
    bool thinks = false;  // the last thing was thought
  };
  void ShowAnswer(const v1::GenerateResponse& response, Shown* shown);
  void Say(absl::string_view note, const google::protobuf::Message& message);

  Context* const context_;
  Terminal* const terminal_;
  Connection* const connection_;
  Interrupts* const interrupts_;
  const ChatOptions options_;
  v1::Model model_;
  std::string conversation_;  // empty: not made yet
  bool empty_;                // it stands at version 0: the system message is due
  bool made_here_ = false;    // by this chat
  bool used_ = false;         // something was said in it here
  v1::Finished last_;
  int64_t turns_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace skein::client
