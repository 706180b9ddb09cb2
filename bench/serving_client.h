#pragma once
// The client of serving_bench: a process of its own, so that what it costs is told apart from what
// the server costs. Forked before there are threads; takes one command a line, gives one answer a
// line, both JSON, and sleeps while there is none.

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/support/channel_arguments.h"
#include "skein/v1/generation.grpc.pb.h"

namespace skein::bench {

using Json = nlohmann::ordered_json;
namespace v1 = ::skein::v1;

// Of all threads of this process.
inline double ProcessCpuSeconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// One Generate, read as fast as it comes.
class StreamReader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  StreamReader(v1::Generation::Stub* stub, v1::GenerateRequest request,
               absl::BlockingCounter* running)
      : request_(std::move(request)), running_(running), start_(absl::Now()) {
    stub->async()->Generate(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_delta()) {
      if (messages_++ == 0) first_token_ = absl::Now() - start_;
      text_ += response_.delta().text();
    } else if (response_.has_finished()) {
      tokens_ = response_.finished().usage().completion_tokens();
    }
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) {
      std::fprintf(stderr, "serving_bench: %s\n", status.error_message().c_str());
      std::exit(1);
    }
    running_->DecrementCount();
  }

  // After the end.
  const std::string& text() const { return text_; }
  int64_t tokens() const { return tokens_; }
  int64_t messages() const { return messages_; }
  double first_token_seconds() const { return absl::ToDoubleSeconds(first_token_); }

 private:
  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  absl::BlockingCounter* const running_;
  const absl::Time start_;
  std::string text_;
  absl::Duration first_token_;
  int64_t tokens_ = 0, messages_ = 0;
};

// A Generate that nobody reads: all that a stream can carry.
class DeadStream final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  explicit DeadStream(v1::Generation::Stub* stub) {
    request_.mutable_text()->set_text("dead");
    request_.mutable_stopping()->set_max_tokens(30000);
    request_.mutable_stopping()->set_ignore_eos(true);
    request_.mutable_output()->set_top_logprobs(20);
    stub->async()->Generate(&context_, &request_, this);
    StartCall();
  }
  ~DeadStream() override {
    context_.TryCancel();
    done_.WaitForNotification();
  }
  DeadStream(const DeadStream&) = delete;
  DeadStream& operator=(const DeadStream&) = delete;
  void OnDone(const grpc::Status&) override { done_.Notify(); }

 private:
  grpc::ClientContext context_;
  v1::GenerateRequest request_;
  absl::Notification done_;
};

class ServingClient {
 public:
  Json Do(const Json& command) {
    const std::string what = command["do"];
    if (what == "connect") {
      stub_ = v1::Generation::NewStub(grpc::CreateChannel(command["address"].get<std::string>(),
                                                          grpc::InsecureChannelCredentials()));
      return Json::object();
    }
    if (what == "hold") return Hold(command);
    if (what == "let_go") {
      dead_.clear();
      return Json::object();
    }
    return what == "streams" ? Streams(command) : Turns(command);
  }

 private:
  static v1::GenerateRequest Request(const std::string& prompt, int tokens) {
    v1::GenerateRequest request;
    request.mutable_text()->set_text(prompt);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    return request;
  }

  // All prompts at once; `tokens` of each.
  Json Streams(const Json& command) {
    const std::vector<std::string> prompts = command["prompts"];
    const double cpu = ProcessCpuSeconds();
    const absl::Time start = absl::Now();
    absl::BlockingCounter running(static_cast<int>(prompts.size()));
    std::vector<std::unique_ptr<StreamReader>> readers;
    for (const std::string& prompt : prompts) {
      readers.push_back(std::make_unique<StreamReader>(
          stub_.get(), Request(prompt, command["tokens"]), &running));
    }
    running.Wait();
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    int64_t tokens = 0, messages = 0;
    uint64_t hash = 0;
    for (const auto& reader : readers) {
      tokens += reader->tokens();
      messages += reader->messages();
      hash = base::Hash64(reader->text().data(), reader->text().size(), hash);
    }
    return {{"seconds", seconds},
            {"cpu_seconds", ProcessCpuSeconds() - cpu},
            {"tokens", tokens},
            {"messages", messages},
            {"hash", hash}};
  }

  double FirstToken(v1::GenerateRequest request, std::string* text) {
    absl::BlockingCounter running(1);
    StreamReader reader(stub_.get(), std::move(request), &running);
    running.Wait();
    *text = reader.text();
    return reader.first_token_seconds();
  }

  // A conversation of `turns` - 1 turns; then, by turns, its next one and the first one of a new
  // conversation, both not kept: the same work each time.
  Json Turns(const Json& command) {
    const std::string prompt = command["prompt"];
    const int turns = command["turns"], repeat = command["repeat"], tokens = command["tokens"];
    std::string text;
    v1::GenerateRequest next = Request(prompt, tokens);
    next.set_conversation_id("long");
    next.set_create_if_missing(true);
    // The first token may be the first byte of a character: its text comes with a later one.
    next.mutable_output()->set_token_ids(true);
    for (int turn = 1; turn < turns; ++turn) FirstToken(next, &text);
    next.set_commit(v1::COMMIT_MODE_NEVER);
    std::vector<double> first, last;
    uint64_t hash = 0;
    for (int i = 0; i < repeat; ++i) {
      v1::GenerateRequest fresh = next;
      fresh.set_conversation_id(absl::StrCat("fresh-", i));
      first.push_back(FirstToken(std::move(fresh), &text));
      if (i == 0) hash = base::Hash64(text.data(), text.size(), hash);
      last.push_back(FirstToken(next, &text));
      if (i == 0) hash = base::Hash64(text.data(), text.size(), hash);
    }
    return {{"first", first}, {"last", last}, {"hash", hash}};
  }

  // Streams that nobody reads, on a connection that takes little ahead.
  Json Hold(const Json& command) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 1024);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    held_ = v1::Generation::NewStub(grpc::CreateCustomChannel(
        command["address"].get<std::string>(), grpc::InsecureChannelCredentials(), arguments));
    for (int i = 0; i < command["streams"].get<int>(); ++i)
      dead_.push_back(std::make_unique<DeadStream>(held_.get()));
    return Json::object();
  }

  std::unique_ptr<v1::Generation::Stub> stub_, held_;
  std::vector<std::unique_ptr<DeadStream>> dead_;
};

// The bench's side of it.
class ClientProcess {
 public:
  // Before this process has threads.
  ClientProcess() {
    int to[2], from[2];
    SKEIN_CHECK(pipe(to) == 0 && pipe(from) == 0);
    child_ = fork();
    SKEIN_CHECK(child_ >= 0);
    close(child_ == 0 ? to[1] : to[0]);
    close(child_ == 0 ? from[0] : from[1]);
    in_ = fdopen(child_ == 0 ? to[0] : from[0], "r");
    out_ = fdopen(child_ == 0 ? from[1] : to[1], "w");
    if (child_ == 0) Serve();
  }
  ~ClientProcess() {
    std::fclose(out_);
    std::fclose(in_);
    waitpid(child_, nullptr, 0);
  }
  ClientProcess(const ClientProcess&) = delete;
  ClientProcess& operator=(const ClientProcess&) = delete;

  Json Call(const Json& command) {
    Send(command);
    std::string line;
    if (!Receive(&line)) {
      std::fprintf(stderr, "serving_bench: its client has ended\n");
      std::exit(1);
    }
    return Json::parse(line);
  }

 private:
  void Send(const Json& json) {
    std::fputs((json.dump() + "\n").c_str(), out_);
    std::fflush(out_);
  }
  bool Receive(std::string* line) {
    for (int c = std::fgetc(in_); c != '\n'; c = std::fgetc(in_)) {
      if (c == EOF) return false;
      line->push_back(static_cast<char>(c));
    }
    return true;
  }
  [[noreturn]] void Serve() {
    {
      ServingClient client;
      for (std::string line; Receive(&line); line.clear()) Send(client.Do(Json::parse(line)));
    }
    _exit(0);
  }

  pid_t child_ = 0;
  FILE* in_ = nullptr;
  FILE* out_ = nullptr;
};

}  // namespace skein::bench
