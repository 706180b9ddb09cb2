#pragma once
// What serving costs: tokens per second through gRPC over those of the bare engine loop (the same
// daemon and requests, submitted with sinks that only collect), and the time to the first token of
// turn 100 over that of turn 1.

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/serving_client.h"
#include "bench/serving_daemon.h"

namespace skein::bench {

// Collects what a client would show.
class TextSink final : public engine::ResponseSink {
 public:
  explicit TextSink(absl::BlockingCounter* running) : running_(running) {}
  void OnQueued(int64_t) override {}
  void OnStarted(const engine::StartedEvent&) override {}
  void OnProgress(const engine::ProgressEvent&) override {}
  void OnOutput(std::vector<engine::TokenEvent> tokens, std::string text) override {
    tokens_ += static_cast<int64_t>(tokens.size());
    text_ += text;
  }
  void OnFinished(const engine::FinishedEvent&) override { running_->DecrementCount(); }
  void OnError(const absl::Status& status) override {
    std::fprintf(stderr, "serving_bench: %s\n", status.ToString().c_str());
    std::exit(1);
  }
  bool Writable() const override { return true; }

  const std::string& text() const { return text_; }
  int64_t tokens() const { return tokens_; }

 private:
  absl::BlockingCounter* const running_;
  std::string text_;
  int64_t tokens_ = 0;
};

struct Round {
  double tokens_per_second = 0;
  double server_us = 0, client_us = 0;    // of processor time for each token
  std::map<std::string, double> threads;  // the server's part of it
  double tokens_per_message = 0;
  uint64_t hash = 0;
};

class ServingCost {
 public:
  ServingCost(const ServingOptions& options, const std::string& model, ClientProcess* client)
      : o_(options), model_(model), client_(*client) {
    if (o_.tokens == 0) o_.tokens = model == "0.1B" ? 48 : 400;
    for (int i = 0; i < o_.streams; ++i) prompts_.push_back(absl::StrCat("Stream ", i, ":"));
  }

  absl::Status Start() {
    server::ServerConfig config = BenchConfig(o_);
    config.engine.slots = o_.streams;
    config.engine.max_step_tokens = std::max(512, o_.streams);
    SKEIN_ASSIGN_OR_RETURN(daemon_, StartDaemon(std::move(config), model_));
    client_.Call({{"do", "connect"}, {"address", daemon_->address()}});
    return absl::OkStatus();
  }

  Json Run() {
    Json json = {{"streams", o_.streams}, {"tokens", o_.tokens}, {"load_average", LoadAverage()}};
    std::printf("%s, %s, load average %.1f\n", model_.c_str(), daemon_->device_name().c_str(),
                LoadAverage());
    if (o_.Has("cost")) ReportCost(&json);
    if (o_.Has("turns")) ReportTurns(&json);
    return json;
  }

 private:
  static constexpr int kTurns = 100;
  // A turn after the first one reads one token more: the last one of the answer before it.
  static constexpr char kPrompt[] =
      "My dog is called Rex, he is four years old and likes to swim in the lake behind our house; "
      "what is his name?\n";

  // What one round took; `body` gives its seconds, tokens and the rest.
  template <typename Body>
  Round Measure(Body body) {
    const std::map<std::string, double> before = ThreadTimes();
    const double cpu = ProcessCpuSeconds();
    double seconds = 0;
    int64_t tokens = 0;
    Round round = body(&seconds, &tokens);
    SKEIN_CHECK(tokens == int64_t{o_.streams} * o_.tokens);
    const double n = static_cast<double>(tokens);
    round.tokens_per_second = n / seconds;
    round.server_us = (ProcessCpuSeconds() - cpu) / n * 1e6;
    for (const auto& [name, time] : ThreadTimes()) {
      const auto it = before.find(name);
      round.threads[name] = (time - (it == before.end() ? 0 : it->second)) / n * 1e6;
    }
    return round;
  }

  Round Bare() {
    return Measure([this](double* seconds, int64_t* tokens) {
      engine::Engine& engine = daemon_->engine();
      absl::BlockingCounter running(o_.streams);
      std::vector<std::shared_ptr<TextSink>> sinks;
      const absl::Time start = absl::Now();
      for (const std::string& prompt : prompts_) {
        engine::GenerateRequest request;
        request.request_id = absl::StrCat("bare-", ++requests_);
        engine.tokenizer().Encode(prompt, &request.input);
        request.sampling.temperature = 0;
        request.stopping.max_tokens = o_.tokens;
        request.stopping.ignore_eos = true;
        sinks.push_back(std::make_shared<TextSink>(&running));
        SKEIN_CHECK(engine.Submit(std::move(request), sinks.back()).ok());
      }
      running.Wait();
      *seconds = absl::ToDoubleSeconds(absl::Now() - start);
      Round round;
      for (const auto& sink : sinks) {
        *tokens += sink->tokens();
        round.hash = base::Hash64(sink->text().data(), sink->text().size(), round.hash);
      }
      return round;
    });
  }

  Round Through() {
    return Measure([this](double* seconds, int64_t* tokens) {
      const Json answer =
          client_.Call({{"do", "streams"}, {"prompts", prompts_}, {"tokens", o_.tokens}});
      *seconds = answer["seconds"];
      *tokens = answer["tokens"];
      Round round;
      round.client_us = answer["cpu_seconds"].get<double>() / static_cast<double>(*tokens) * 1e6;
      round.tokens_per_message = static_cast<double>(*tokens) / answer["messages"].get<double>();
      round.hash = answer["hash"];
      return round;
    });
  }

  // The round of median speed.
  static const Round& Middle(std::vector<Round>* rounds) {
    std::sort(rounds->begin(), rounds->end(), [](const Round& a, const Round& b) {
      return a.tokens_per_second < b.tokens_per_second;
    });
    return (*rounds)[rounds->size() / 2];
  }

  static Json Line(const char* name, const Round& r) {
    std::printf(
        "  %-17s %9.1f tokens/s; processor time of a token: server %7.1f us, client %6.1f us"
        "  %016llx\n",
        name, r.tokens_per_second, r.server_us, r.client_us,
        static_cast<unsigned long long>(r.hash));
    return {{"tokens_per_second", r.tokens_per_second},
            {"server_cpu_us", r.server_us},
            {"client_cpu_us", r.client_us},
            {"server_threads_us", r.threads},
            {"hash", absl::StrCat(absl::Hex(r.hash))}};
  }

  void ReportCost(Json* json) {
    Through();  // warm-up: connection, threads, step-time model
    Bare();
    std::vector<Round> bare, through;
    std::vector<double> ratios;
    for (int round = 0; round < o_.rounds; ++round) {
      bare.push_back(Bare());
      through.push_back(Through());
      SKEIN_CHECK(bare.back().hash == bare[0].hash && through.back().hash == bare[0].hash);
      ratios.push_back(through.back().tokens_per_second / bare.back().tokens_per_second);
    }
    const Round& floor = Middle(&bare);
    const Round& served = Middle(&through);
    std::printf(" cost: %d streams of %d tokens\n", o_.streams, o_.tokens);
    (*json)["served"] = Line("through gRPC", served);
    (*json)["bare"] = Line("bare engine loop", floor);
    // Of neighbouring rounds, so that a busy moment of the machine hits both.
    (*json)["ratio"] = Median(ratios);
    (*json)["ratios"] = ratios;
    (*json)["tokens_per_message"] = served.tokens_per_message;
    std::printf("  ratio %.3f (target 0.95; rounds:", Median(ratios));
    for (const double r : ratios) std::printf(" %.3f", r);
    std::printf("), %.2f tokens a message\n", served.tokens_per_message);
    std::printf("  server's threads, us of a token through gRPC (bare):");
    for (const auto& [name, us] : served.threads) {
      const auto it = floor.threads.find(name);
      const double base = it == floor.threads.end() ? 0 : it->second;
      if (us > 0.05 || base > 0.05) std::printf(" %s %.1f (%.1f)", name.c_str(), us, base);
    }
    std::printf("\n");
  }

  void ReportTurns(Json* json) {
    const Json turns = client_.Call(
        {{"do", "turns"}, {"prompt", kPrompt}, {"turns", kTurns}, {"repeat", 40}, {"tokens", 4}});
    const double first = Median(turns["first"]), last = Median(turns["last"]);
    const uint64_t hash = turns["hash"];
    std::printf("  first token: turn 1 %.3f ms, turn %d %.3f ms, ratio %.3f  %016llx\n",
                first * 1e3, kTurns, last * 1e3, last / first,
                static_cast<unsigned long long>(hash));
    (*json)["first_token"] = {{"turn_1_seconds", first},
                              {"turn_100_seconds", last},
                              {"ratio", last / first},
                              {"hash", absl::StrCat(absl::Hex(hash))}};
  }

  ServingOptions o_;
  const std::string model_;
  ClientProcess& client_;
  std::vector<std::string> prompts_;
  std::unique_ptr<server::Daemon> daemon_;
  int64_t requests_ = 0;
};

}  // namespace skein::bench
