// Tokens per second through gRPC at many streams, beside the bare engine loop in the same run: the
// same daemon, the same requests, once submitted to the engine with sinks that only count, once
// sent over a local connection. The client runs in this process and shares its cores, as a load
// generator on the same machine would. Rounds alternate; the figure is the median.
//
//   serving_bench [--streams 64] [--tokens 200] [--rounds 5] [--threads 0] [--json FILE]

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/checkpoint.h"
#include "grpcpp/create_channel.h"
#include "server/daemon.h"
#include "server/grpc_server.h"
#include "server/log.h"
#include "skein/v1/generation.grpc.pb.h"
#include "tests/engine/random_model.h"

namespace skein::server {
namespace {

constexpr engine::RandomShape kShape{4, 256, 64, 257, 1024, 32, 32, 32, 32, 1};
constexpr char kPrompt[] = "The quick brown fox jumps over the lazy dog.";

struct Options {
  int streams = 64, tokens = 200, rounds = 5, threads = 0;
  std::string json;
};

class CountingSink final : public engine::ResponseSink {
 public:
  CountingSink(std::atomic<int64_t>* tokens, absl::BlockingCounter* running)
      : tokens_(tokens), running_(running) {}
  void OnQueued(int64_t) override {}
  void OnStarted(const engine::StartedEvent&) override {}
  void OnProgress(const engine::ProgressEvent&) override {}
  void OnOutput(std::vector<engine::TokenEvent> tokens, std::string) override {
    *tokens_ += static_cast<int64_t>(tokens.size());
  }
  void OnFinished(const engine::FinishedEvent&) override { running_->DecrementCount(); }
  void OnError(const absl::Status& status) override {
    std::fprintf(stderr, "serving_bench: %s\n", status.ToString().c_str());
    std::exit(1);
  }
  bool Writable() const override { return true; }

 private:
  std::atomic<int64_t>* const tokens_;
  absl::BlockingCounter* const running_;
};

// Tokens per second of the engine alone.
double BareRound(engine::Engine& engine, const Options& o) {
  std::atomic<int64_t> tokens{0};
  absl::BlockingCounter running(o.streams);
  const absl::Time start = absl::Now();
  for (int i = 0; i < o.streams; ++i) {
    engine::GenerateRequest request;
    request.request_id = absl::StrCat("bare-", i);
    engine.tokenizer().Encode(kPrompt, &request.input);
    request.sampling.temperature = 0;
    request.stopping.max_tokens = o.tokens;
    request.stopping.ignore_eos = true;
    SKEIN_CHECK(
        engine.Submit(std::move(request), std::make_shared<CountingSink>(&tokens, &running)).ok());
  }
  running.Wait();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  SKEIN_CHECK(tokens == int64_t{o.streams} * o.tokens);
  return static_cast<double>(tokens) / seconds;
}

class Reader final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Reader(v1::Generation::Stub* stub, const v1::GenerateRequest& request,
         std::atomic<int64_t>* tokens, std::atomic<int64_t>* messages,
         absl::BlockingCounter* running)
      : tokens_(tokens), messages_(messages), running_(running) {
    stub->async()->Generate(&context_, &request, this);
    StartRead(&response_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    ++*messages_;
    if (response_.has_finished()) *tokens_ += response_.finished().usage().completion_tokens();
    StartRead(&response_);
  }
  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) {
      std::fprintf(stderr, "serving_bench: %s\n", status.error_message().c_str());
      std::exit(1);
    }
    running_->DecrementCount();
  }

 private:
  grpc::ClientContext context_;
  v1::GenerateResponse response_;
  std::atomic<int64_t>* const tokens_;
  std::atomic<int64_t>* const messages_;
  absl::BlockingCounter* const running_;
};

// Tokens per second through gRPC; `messages`: how many carried them.
double GrpcRound(v1::Generation::Stub* stub, const Options& o, int64_t* messages_out) {
  v1::GenerateRequest request;
  request.mutable_text()->set_text(kPrompt);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(o.tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  std::atomic<int64_t> tokens{0}, messages{0};
  absl::BlockingCounter running(o.streams);
  std::vector<std::unique_ptr<Reader>> readers;
  const absl::Time start = absl::Now();
  for (int i = 0; i < o.streams; ++i) {
    readers.push_back(std::make_unique<Reader>(stub, request, &tokens, &messages, &running));
  }
  running.Wait();
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  SKEIN_CHECK(tokens == int64_t{o.streams} * o.tokens);
  *messages_out = messages;
  return static_cast<double>(tokens) / seconds;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

int Report(const Options& o, const std::string& device, double measured, double floor,
           double per_message) {
  std::printf("%d streams, %d tokens each, %s\n", o.streams, o.tokens, device.c_str());
  std::printf("  through gRPC     %9.0f tokens/s (%.1f tokens a message)\n", measured, per_message);
  std::printf("  bare engine loop %9.0f tokens/s\n", floor);
  std::printf("  ratio            %9.3f\n", measured / floor);
  if (o.json.empty()) return 0;
  const nlohmann::ordered_json json = {
      {"benchmark", "serving"}, {"streams", o.streams},      {"tokens", o.tokens},
      {"device", device},       {"unit", "tokens/s"},        {"measured", measured},
      {"floor", floor},         {"ratio", measured / floor}, {"tokens_per_message", per_message}};
  std::ofstream file(o.json);
  file << json.dump(2) << "\n";
  return file.good() ? 0 : 1;
}

int Run(const Options& o) {
  const std::string path = absl::StrCat("/tmp/serving_bench-", getpid(), ".safetensors");
  SKEIN_CHECK(
      engine::RandomModel(kShape)
          .Write(path, {{engine::kMetaTokenizer, "bytes"}, {engine::kMetaChatTemplate, "none"}})
          .ok());
  ServerConfig config;
  config.listen.address = "127.0.0.1:0";
  config.listen.metrics = "";
  config.model.path = path;
  config.cpu.threads = o.threads;
  config.engine.slots = o.streams;
  config.engine.max_step_tokens = std::max(512, o.streams);
  config.log.level = "error";
  InitLog(config.log);
  InitGrpc();
  auto daemon = Daemon::Start({config, ""}, nullptr, nullptr);
  unlink(path.c_str());
  if (!daemon.ok()) {
    std::fprintf(stderr, "serving_bench: %s\n", daemon.status().ToString().c_str());
    return 1;
  }
  auto stub = v1::Generation::NewStub(
      grpc::CreateChannel((*daemon)->address(), grpc::InsecureChannelCredentials()));
  std::vector<double> bare, through;
  int64_t messages = 0;
  GrpcRound(stub.get(), o, &messages);  // warm-up: connection, threads, step-time model
  BareRound((*daemon)->engine(), o);
  for (int round = 0; round < o.rounds; ++round) {
    bare.push_back(BareRound((*daemon)->engine(), o));
    through.push_back(GrpcRound(stub.get(), o, &messages));
  }
  const double per_message =
      static_cast<double>(o.streams) * o.tokens / static_cast<double>(messages);
  return Report(o, (*daemon)->device_name(), Median(through), Median(bare), per_message);
}

}  // namespace
}  // namespace skein::server

int main(int argc, char** argv) {
  skein::server::Options o;
  CLI::App app("Tokens per second through gRPC beside the bare engine loop.");
  app.add_option("--streams", o.streams)->check(CLI::Range(1, 4096));
  app.add_option("--tokens", o.tokens)->check(CLI::Range(1, 100000));
  app.add_option("--rounds", o.rounds)->check(CLI::Range(1, 1000));
  app.add_option("--threads", o.threads);
  app.add_option("--json", o.json);
  CLI11_PARSE(app, argc, argv);
  return skein::server::Run(o);
}
