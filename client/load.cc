// skein load: many requests at once, and how long they took.

#include <memory>

#include "absl/strings/str_cat.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/generation_flags.h"
#include "client/interrupt.h"
#include "client/load_report.h"
#include "client/load_run.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"

namespace skein::client {
namespace {

constexpr double kForever = 1e8;  // seconds
constexpr double kRedraw = 0.2;   // of the progress line
// Bytes of a text file that prompts are cut from. Where each byte is a token the answer of Tokenize
// is six times as long, and 4 MiB are the most.
constexpr size_t kMostText = 512 << 10;

constexpr char kFooter[] =
    "Examples:\n"
    "  skein load -u 64 -d 60                          64 users, each with one request at a time\n"
    "  skein load --rate 20 -d 60 --warm-up 5          20 requests a second whatever happens\n"
    "  skein load --rate 5 --prompt lognormal:200,0.8,4000 --output uniform:20,200\n"
    "  skein load -u 32 --turns uniform:2,8 --think lognormal:2,0.5   conversations with pauses\n"
    "  skein load -u 64 --cancel 0.1 --hang-up 0.05 --slow 0.1        badly behaved clients\n"
    "A distribution is a number, uniform:LEAST,MOST, lognormal:MEDIAN,SIGMA[,MAX] or file:PATH\n"
    "(numbers between white space, drawn with equal chance).\n"
    "With --rate, latencies count from when a request should have started, so that a server which\n"
    "holds everybody up cannot hide it (coordinated omission). Tokens that arrive in one message\n"
    "count as one arrival. A slow reader's latencies are left out.";

// The ids that prompts are cut from.
grpc::Status TokenizeText(const LoadOptions& options, Connection* connection,
                          std::vector<int32_t>* ids) {
  std::string text = kLoadText;
  if (!options.text_file.empty()) {
    auto contents = base::ReadFile(options.text_file);
    if (!contents.ok()) return FromAbsl(contents.status());
    text = contents->substr(0, kMostText);
  }
  v1::TokenizeRequest request;
  request.set_model(options.request.model());
  request.set_bytes(text);
  v1::TokenizeResponse response;
  const grpc::Status status = connection->Call(connection->generation(),
                                               &v1::Generation::Stub::Tokenize, request, &response);
  if (!status.ok()) return status;
  if (response.ids().empty())
    return FromAbsl(absl::InvalidArgumentError("the text for prompts is empty"));
  ids->assign(response.ids().begin(), response.ids().end());
  return status;
}

// The first Ctrl-C stops, the second cuts.
void WaitFor(LoadRun* run, const LoadOptions& options, Terminal* terminal, Interrupts* interrupts) {
  int presses = 0;
  while (!run->WaitUntilOver(kRedraw)) {
    if (interrupts->Take()) ++presses == 1 ? run->Stop() : run->Cut();
    terminal->Transient(ProgressLine(options, *run));
  }
}

grpc::Status Run(const LoadOptions& options, Context* context) {
  std::vector<std::unique_ptr<Connection>> connections;
  for (int i = 0; i < options.connections; ++i) {
    connections.push_back(std::make_unique<Connection>(context->Connect(/*own_socket=*/true)));
  }
  std::vector<int32_t> text;
  const grpc::Status status = TokenizeText(options, connections[0].get(), &text);
  if (!status.ok()) return status;
  Interrupts interrupts;
  LoadRun run(options, text, &connections);
  run.Start();
  WaitFor(&run, options, context->terminal, &interrupts);
  if (context->json) {
    context->terminal->Raw(LoadReportJson(options, run) + "\n");
  } else {
    PrintLoadReport(options, run, context->terminal);
  }
  if (run.stats().ok == 0) context->exit_code = kExitFailed;
  return grpc::Status::OK;
}

void AddDistribution(CLI::App* command, const char* name, const char* help, const char* type,
                     Distribution* out) {
  command
      ->add_option_function<std::string>(
          name,
          [name, out](const std::string& text) {
            auto parsed = Distribution::Parse(text);
            if (!parsed.ok())
              throw CLI::ValidationError(name, std::string(parsed.status().message()));
            *out = *std::move(parsed);
          },
          help)
      ->type_name(type)
      ->default_str(out->text())
      ->group("Requests");
}

void AddShare(CLI::App* command, const char* name, const char* help, double* out) {
  command->add_option(name, *out, help)
      ->type_name("SHARE")
      ->check(CLI::Range(0.0, 1.0))
      ->group("Bad manners");
}

void AddLoopFlags(CLI::App* command, LoadOptions* o) {
  const auto add = [command](const char* name, auto* value, const char* help, const char* type,
                             CLI::Range range) {
    return command->add_option(name, *value, help)
        ->type_name(type)
        ->check(range)
        ->capture_default_str()
        ->group("Load");
  };
  CLI::Option* users =
      add("-u,--users", &o->users, "closed loop: so many users, each waits for its answer", "N",
          CLI::Range(1, 1000000));
  CLI::Option* rate = command
                          ->add_option("-r,--rate", o->rate,
                                       "open loop: requests (conversations, with --turns) that "
                                       "arrive a second on average")
                          ->type_name("X")
                          ->check(CLI::Range(1e-6, 1e6))
                          ->group("Load");
  rate->excludes(users);
  add("--max-open", &o->max_open, "with --rate: at most so many at once; the others wait", "N",
      CLI::Range(1, 1000000));
  add("--warm-up", &o->warm_up, "load before the measurement", "SECONDS", CLI::Range(0.0, 1e6));
  add("--grace", &o->grace, "after the end: what still runs may go on for so long", "SECONDS",
      CLI::Range(0.0, 1e6));
  add("--connections", &o->connections, "sockets that the requests are spread over", "N",
      CLI::Range(1, 10000));
  add("--load-seed", &o->seed, "the same seed draws the same lengths, pauses and texts", "N",
      CLI::Range(uint64_t{0}, uint64_t{1} << 62));
}

// A count alone sets no time limit.
void AddEndFlags(CLI::App* command, LoadOptions* o) {
  CLI::Option* duration = command->add_option("-d,--duration", o->duration, "of the measurement")
                              ->type_name("SECONDS")
                              ->check(CLI::Range(0.01, 1e6))
                              ->capture_default_str()
                              ->group("Load");
  command
      ->add_option_function<int64_t>(
          "-n,--requests",
          [o, duration](int64_t n) {
            o->requests = n;
            if (duration->count() == 0) o->duration = kForever;
          },
          "end after so many requests, those of the warm-up not counted")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->group("Load");
}

void AddRequestFlags(CLI::App* command, LoadOptions* o) {
  AddDistribution(command, "--prompt", "tokens of a prompt", "DIST", &o->prompt);
  AddDistribution(command, "--output", "tokens of an answer", "DIST", &o->output);
  AddDistribution(command, "--turns", "turns of a conversation; 1: no conversation", "DIST",
                  &o->turns);
  AddDistribution(command, "--think", "seconds between an answer and the next turn", "DIST",
                  &o->think);
  command->add_flag("--keep", o->keep, "do not delete the conversations")->group("Requests");
  command->add_option("--text", o->text_file, "prompts are cut from this file")
      ->type_name("FILE")
      ->group("Requests");
  command
      ->add_option_function<std::string>(
          "--model", [o](const std::string& v) { o->request.set_model(v); }, "model name")
      ->type_name("NAME")
      ->group("Requests");
  command->add_option("--deadline", o->deadline, "gRPC deadline of each request")
      ->type_name("SECONDS")
      ->group("Requests");
  AddShare(command, "--cancel", "share of the requests that are ended by the Cancel RPC",
           &o->cancel);
  AddShare(command, "--hang-up", "share of the requests whose client goes away", &o->hang_up);
  AddShare(command, "--slow", "share of the requests that are read slowly", &o->slow);
  command->add_option("--slow-rate", o->slow_rate, "messages a second that a slow reader takes")
      ->type_name("X")
      ->check(CLI::Range(0.1, 1e6))
      ->capture_default_str()
      ->group("Bad manners");
}

}  // namespace

void AddLoad(CLI::App* app, Context* context) {
  const auto options = std::make_shared<LoadOptions>();
  CLI::App* command = app->add_subcommand("load", "measure a server under load");
  command->footer(kFooter);
  AddServerOption(command, context);
  AddJsonOption(command, context, "print the result as one line of JSON");
  AddLoopFlags(command, options.get());
  AddEndFlags(command, options.get());
  AddRequestFlags(command, options.get());
  AddSamplingFlags(command, &options->request);
  command->callback([options, context] {
    if (options->cancel + options->hang_up > 1)
      throw CLI::ValidationError("--cancel", "and --hang-up together are more than 1");
    context->run = [options, context] { return Run(*options, context); };
  });
}

}  // namespace skein::client
