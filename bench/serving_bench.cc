// The server beside its engine, and under more than it can serve. Parts, each by itself with
// --parts:
//   cost      tokens per second through gRPC at many streams over those of the bare engine loop;
//             rounds alternate, figures are medians, both ways must give the same text
//   turns     time to the first token of turn 100 over that of turn 1
//   overload  ten times as many requests as fit, beside 0.9 of what fits: time between tokens of
//             those that are accepted, time of refusals, memory
//   dead      64 streams that nobody reads: what the others get, beside a run without them
//   mixed     long prompts beside rows that decode: time between tokens, beside a run without them
// The clients are processes of their own on the same cores, as a load generator on this machine
// would be; what they take is printed beside.
//
//   serving_bench [--models 0.1B,demo,FILE] [--parts cost,turns,overload,dead,mixed]
//                 [--streams 64] [--tokens 0] [--rounds 5] [--slots 16] [--seconds 8]
//                 [--threads 0] [--json FILE]

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>

#include "bench/serving_cost.h"
#include "bench/serving_daemon.h"
#include "bench/serving_load.h"
#include "bench/write_json.h"

namespace skein::bench {
namespace {

// One group of parts, with a daemon of its own.
template <typename Group>
absl::Status RunGroup(const ServingOptions& o, const std::string& model, ClientProcess* client,
                      Json* out) {
  Group group(o, model, client);
  SKEIN_RETURN_IF_ERROR(group.Start());
  out->update(group.Run());
  return absl::OkStatus();
}

absl::Status RunModel(const ServingOptions& o, const std::string& model, ClientProcess* client,
                      Json* out) {
  if (o.Has("cost") || o.Has("turns"))
    SKEIN_RETURN_IF_ERROR(RunGroup<ServingCost>(o, model, client, out));
  if (o.Has("overload") || o.Has("dead") || o.Has("mixed"))
    SKEIN_RETURN_IF_ERROR(RunGroup<ServingLoad>(o, model, client, out));
  return absl::OkStatus();
}

int Run(const ServingOptions& o) {
  ClientProcess client;
  server::InitGrpc();
  Json results = Json::array();
  for (const std::string& model : o.models) {
    Json json = {{"model", model}};
    if (absl::Status s = RunModel(o, model, &client, &json); !s.ok()) {
      std::fprintf(stderr, "serving_bench: %s\n", std::string(s.message()).c_str());
      return 1;
    }
    results.push_back(std::move(json));
  }
  return WriteJson(o.json, {{"benchmark", "serving"}, {"results", results}});
}

}  // namespace
}  // namespace skein::bench

int main(int argc, char** argv) {
  skein::bench::ServingOptions o;
  CLI::App app("What serving costs, and what it does under load.");
  app.add_option("--models", o.models,
                 "0.1B and demo are random models of that shape, anything else is a file")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--parts", o.parts, "which")
      ->delimiter(',')
      ->check(CLI::IsMember({"cost", "turns", "overload", "dead", "mixed"}))
      ->capture_default_str();
  app.add_option("--streams", o.streams)->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--tokens", o.tokens, "of each stream; 0: by the model")
      ->check(CLI::Range(0, 100000));
  app.add_option("--rounds", o.rounds)->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--slots", o.slots, "of the parts under load")
      ->check(CLI::Range(2, 4096))
      ->capture_default_str();
  app.add_option("--seconds", o.seconds, "of each phase of the parts under load")
      ->check(CLI::Range(1.0, 3600.0))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "of the engine; 0: as many as this process may use")
      ->check(CLI::Range(0, 1024));
  app.add_option("--json", o.json);
  CLI11_PARSE(app, argc, argv);
  return skein::bench::Run(o);
}
