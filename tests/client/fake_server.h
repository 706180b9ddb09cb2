#pragma once
// A skeind without a model for the tests of the client: it answers "You said: <text>.", keeps
// conversations, and obeys a few words in the input. Sees every request. And a way to run `skein`
// against it in this process.

#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "engine/base/check.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/grpcpp.h"
#include "skein/v1/conversations.grpc.pb.h"
#include "skein/v1/generation.grpc.pb.h"
#include "skein/v1/info.grpc.pb.h"

namespace skein::client {

// A status with one detail of google.rpc.
inline grpc::Status WithDetail(grpc::StatusCode code, const std::string& message,
                               const std::vector<const google::protobuf::Message*>& details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  for (const google::protobuf::Message* detail : details) status.add_details()->PackFrom(*detail);
  return grpc::Status(code, message, status.SerializeAsString());
}

class FakeInfo : public v1::Info::Service {
 public:
  v1::Model model;
  bool interrupt = false;  // press Ctrl-C while the client asks

  grpc::Status GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                             v1::ServerInfo* info) override {
    info->set_version("9.9.9");
    info->set_device("cpu");
    return grpc::Status::OK;
  }
  grpc::Status ListModels(grpc::ServerContext*, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    if (interrupt) SKEIN_CHECK(kill(getpid(), SIGINT) == 0);
    *response->add_models() = model;
    return grpc::Status::OK;
  }
};

class FakeConversations : public v1::Conversations::Service {
 public:
  std::mutex mu;
  std::map<std::string, v1::Conversation> kept;  // by id
  v1::ListConversationsRequest listed;           // the last one
  v1::CreateConversationRequest created;

  grpc::Status Create(grpc::ServerContext*, const v1::CreateConversationRequest* request,
                      v1::Conversation* out) override {
    const std::lock_guard lock(mu);
    created = *request;
    const std::string id = request->id().empty() ? absl::StrCat("made-", ++made_) : request->id();
    kept[id].set_id(id);
    *out = kept[id];
    return grpc::Status::OK;
  }
  grpc::Status Get(grpc::ServerContext*, const v1::GetConversationRequest* request,
                   v1::Conversation* out) override {
    const std::lock_guard lock(mu);
    return Copy(request->id(), out);
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListConversationsRequest* request,
                    v1::ListConversationsResponse* out) override {
    const std::lock_guard lock(mu);  // one a page, so that paging is needed
    listed = *request;
    for (const auto& [id, conversation] : kept) {
      if (id <= request->page_token() || !absl::StartsWith(id, request->id_prefix())) continue;
      if (out->conversations_size() == 1) {
        out->set_next_page_token(out->conversations(0).id());
        break;
      }
      *out->add_conversations() = conversation;
    }
    return grpc::Status::OK;
  }
  grpc::Status Delete(grpc::ServerContext*, const v1::DeleteConversationRequest* request,
                      v1::DeleteConversationResponse*) override {
    const std::lock_guard lock(mu);
    return kept.erase(request->id()) == 1 ? grpc::Status::OK : Missing(request->id());
  }
  grpc::Status Fork(grpc::ServerContext*, const v1::ForkConversationRequest* request,
                    v1::ForkConversationResponse* out) override {
    const std::lock_guard lock(mu);
    for (int i = 0; i < std::max(request->count(), 1); ++i) {
      v1::Conversation copy;
      const grpc::Status status = Copy(request->id(), &copy);
      if (!status.ok()) return status;
      copy.set_id(i < request->new_ids_size() ? request->new_ids(i)
                                              : absl::StrCat("made-", ++made_));
      if (request->has_version()) copy.set_head_version(request->version());
      kept[copy.id()] = copy;
      *out->add_conversations() = copy;
    }
    return grpc::Status::OK;
  }
  grpc::Status Rewind(grpc::ServerContext*, const v1::RewindConversationRequest* request,
                      v1::Conversation* out) override {
    const std::lock_guard lock(mu);
    if (kept.count(request->id()) == 1) kept[request->id()].set_head_version(request->version());
    return Copy(request->id(), out);
  }

  static grpc::Status Missing(const std::string& id) {
    google::rpc::ErrorInfo info;
    info.set_reason("CONVERSATION_NOT_FOUND");
    return WithDetail(grpc::StatusCode::NOT_FOUND,
                      absl::StrCat("there is no conversation '", id, "'"), {&info});
  }

 private:
  grpc::Status Copy(const std::string& id, v1::Conversation* out) {
    const auto it = kept.find(id);
    if (it == kept.end()) return Missing(id);
    *out = it->second;
    return grpc::Status::OK;
  }
  int made_ = 0;
};

class FakeGeneration : public v1::Generation::Service {
 public:
  explicit FakeGeneration(FakeConversations* conversations) : conversations_(*conversations) {}

  std::vector<v1::GenerateRequest> requests;  // read them when no call runs
  std::vector<std::string> cancelled;
  grpc::Status refusal;  // when not OK

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    requests.push_back(*request);
    if (!refusal.ok()) return refusal;
    v1::GenerateResponse response;
    response.mutable_started()->set_conversation_id(request->conversation_id());
    response.mutable_started()->set_request_id(request->request_id());
    writer->Write(response);
    const std::string said = Said(*request);
    std::string answer;
    if (request->num_sequences() > 1) return Several(*request, said, writer);
    if (request->output().prompt_logprobs()) {
      v1::Token* token = response.mutable_prompt_logprobs()->add_tokens();
      token->set_id(3);
      token->set_bytes(said);
      token->set_logprob(-1.5f);
      writer->Write(response);
    }
    if (request->thinking() == "on") {
      response.mutable_delta()->set_reasoning(" Hm.");
      writer->Write(response);
      response.Clear();
    }
    for (const std::string& word : {std::string(" You"), std::string(" said: "), said + "."}) {
      answer += word;
      response.mutable_delta()->set_text(word);
      v1::Token* token = response.mutable_delta()->add_tokens();
      token->set_id(7);
      token->set_bytes(word);
      token->set_logprob(-0.5f);
      writer->Write(response);
      response.Clear();
    }
    v1::Finished* finished = response.mutable_finished();
    finished->set_reason(said == "slow" ? WaitForCancel(context, request->request_id())
                                        : v1::FINISH_REASON_STOP);
    finished->mutable_usage()->set_completion_tokens(3);
    finished->mutable_timings()->mutable_mean_inter_token()->set_nanos(50'000'000);
    finished->mutable_timings()->mutable_time_to_first_token()->set_nanos(23'000'000);
    if (!request->conversation_id().empty()) Commit(*request, said, answer, finished);
    writer->Write(response);
    return grpc::Status::OK;
  }

  grpc::Status Cancel(grpc::ServerContext*, const v1::CancelRequest* request,
                      v1::CancelResponse* response) override {
    const std::lock_guard lock(mu_);
    cancelled.push_back(request->request_id());
    response->set_cancelled(true);
    changed_.notify_all();
    return grpc::Status::OK;
  }

  grpc::Status Score(grpc::ServerContext*, const v1::ScoreRequest* request,
                     grpc::ServerWriter<v1::ScoreResponse>* writer) override {
    for (int i = 0; i < request->continuations_size(); ++i) {
      v1::ScoreResponse response;
      response.set_index(i);
      v1::ScoredToken* token = response.add_tokens();
      token->set_id(5);
      token->set_bytes(request->continuations(i).text().text());
      token->set_logprob(-2);
      response.set_total_logprob(-2);
      writer->Write(response);
    }
    return grpc::Status::OK;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    const std::string bytes = request->has_messages()
                                  ? "User: " + request->messages().messages(0).content()
                                  : request->bytes();
    response->add_ids(42);
    response->add_pieces(bytes);
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const int32_t id : request->ids())
      absl::StrAppend(response->mutable_bytes(), "<", id, ">");
    response->set_text(response->bytes());
    return grpc::Status::OK;
  }

 private:
  // Their events take turns; the second one fails.
  static grpc::Status Several(const v1::GenerateRequest& request, const std::string& said,
                              grpc::ServerWriter<v1::GenerateResponse>* writer) {
    const int n = request.num_sequences();
    v1::GenerateResponse response;
    for (int i = 0; i < n; ++i) {
      response.mutable_started()->set_index(i);
      response.mutable_started()->set_seed(40 + i);
      response.mutable_started()->set_conversation_id(absl::StrCat("copy-", i));
      writer->Write(response);
    }
    for (const std::string& word : {said, std::string(" again")}) {
      for (int i = 0; i < n; ++i) {
        response.mutable_delta()->set_index(i);
        response.mutable_delta()->set_text(absl::StrCat(word, i));
        writer->Write(response);
      }
    }
    for (int i = n - 1; i >= 0; --i) {
      response.mutable_finished()->set_index(i);
      if (i == 1) {
        response.mutable_finished()->set_reason(v1::FINISH_REASON_ERROR);
        response.mutable_finished()->mutable_error()->set_message("it failed");
      } else {
        response.mutable_finished()->set_reason(v1::FINISH_REASON_STOP);
        response.mutable_finished()->set_committed(true);
        response.mutable_finished()->set_version(3);
      }
      writer->Write(response);
      response.Clear();
    }
    return grpc::Status::OK;
  }

  static std::string Said(const v1::GenerateRequest& request) {
    if (request.has_text()) return request.text().text();
    if (request.has_token_ids()) return absl::StrCat(request.token_ids().ids_size(), " ids");
    if (!request.has_messages()) return "nothing";
    return request.messages().messages(request.messages().messages_size() - 1).content();
  }

  // Presses Ctrl-C in this process, as a person would while the answer streams, and waits for what
  // the client makes of it.
  v1::FinishReason WaitForCancel(grpc::ServerContext* context, const std::string& request_id) {
    SKEIN_CHECK(kill(getpid(), SIGINT) == 0);
    std::unique_lock lock(mu_);
    while ((cancelled.empty() || cancelled.back() != request_id) && !context->IsCancelled()) {
      changed_.wait_for(lock, std::chrono::milliseconds(20));
    }
    return v1::FINISH_REASON_CANCELLED;
  }

  void Commit(const v1::GenerateRequest& request, const std::string& said,
              const std::string& answer, v1::Finished* finished) {
    const std::lock_guard lock(conversations_.mu);
    v1::Conversation& conversation = conversations_.kept[request.conversation_id()];
    conversation.set_id(request.conversation_id());
    v1::Version* version = conversation.add_versions();
    version->set_id(conversation.versions_size());
    version->set_parent(request.has_base_version() ? request.base_version()
                                                   : conversation.head_version());
    version->set_input(absl::StrCat("User: ", said, "\n\nAssistant:"));
    version->set_output(answer);
    version->set_finish_reason(finished->reason());
    for (int i = 0; i < 4; ++i) version->add_input_token_ids(100 + i);
    conversation.set_head_version(version->id());
    finished->set_committed(true);
    finished->set_version(version->id());
  }

  FakeConversations& conversations_;
  std::mutex mu_;
  std::condition_variable changed_;
};

class FakeServer {
 public:
  FakeServer() : generation(&conversations) {
    info.model.set_name("parrot");
    info.model.set_description("RWKV-7, 0 layers");
    info.model.set_about("Repeats what you say.");
    info.model.add_examples("My name is Talor.");
    info.model.add_examples("What is my name?");
    info.model.set_chat_template("rwkv");
    info.model.add_chat_stops("\n\nUser");
    info.model.add_prompt_states()->set_name("greeting");
    info.model.mutable_prompt_states(0)->set_tokens(12);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&info).RegisterService(&conversations).RegisterService(&generation);
    server_ = builder.BuildAndStart();
    SKEIN_CHECK(server_ != nullptr && port_ != 0);
  }
  ~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  FakeInfo info;
  FakeConversations conversations;
  FakeGeneration generation;

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

struct Outcome {
  int code = 0;
  std::string out, err;
};

// Runs `skein <arguments>` with `input` as its standard input. With `keep_open` the input does not
// end.
inline Outcome RunClient(const std::vector<std::string>& arguments, const std::string& input = "",
                         Terminal::Options terminal_options = {}, bool keep_open = false) {
  int fds[2];
  SKEIN_CHECK(pipe(fds) == 0);
  SKEIN_CHECK(write(fds[1], input.data(), input.size()) == static_cast<ssize_t>(input.size()));
  if (!keep_open) close(fds[1]);
  std::ostringstream out, err;
  Terminal terminal(fds[0], &out, &err, terminal_options);
  std::vector<const char*> argv = {"skein"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  Outcome outcome;
  outcome.code = RunSkein(static_cast<int>(argv.size()), argv.data(), &terminal);
  outcome.out = out.str();
  outcome.err = err.str();
  close(fds[0]);
  if (keep_open) close(fds[1]);
  return outcome;
}

}  // namespace skein::client
