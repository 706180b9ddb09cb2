#include "client/command.h"

#include <cstdlib>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "client/errors.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"
#include "google/protobuf/util/json_util.h"

namespace skein::client {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 done, 1 failed, 2 wrong command line, 3 no server, 4 not found, 5 refused (bad "
    "field or state),\n"
    "6 try later (full, busy, shutting down), 7 deadline, 8 not allowed, 9 not offered by this "
    "server, 130 Ctrl-C.\n"
    "Environment: SKEIN_SERVER and SKEIN_TOKEN are the defaults of --server and --token; NO_COLOR "
    "turns colour off.";

std::string DefaultServer() {
  const char* server = std::getenv("SKEIN_SERVER");
  return server != nullptr && *server != '\0' ? server : kDefaultServer;
}

void Build(CLI::App* app, Context* context) {
  app->footer(kFooter);
  app->require_subcommand(1);
  app->set_version_flag("--version", "skein " SKEIN_VERSION);
  AddServerOption(app, context);
  AddChat(app, context);
  AddGenerate(app, context);
  AddConversations(app, context);
  AddInfo(app, context);
  AddTokenize(app, context);
  AddScore(app, context);
  AddEvaluate(app, context);
  AddLoad(app, context);
  AddModels(app, context);
  AddServer(app, context);
}

// Help and version go to the terminal too, so that tests see them.
int ReportParse(const CLI::App& app, const CLI::ParseError& error, Terminal* terminal) {
  std::ostringstream out, err;
  const int code = app.exit(error, out, err);
  terminal->Raw(out.str());
  std::string text = err.str();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (!text.empty()) terminal->Error(text);
  return code == 0 ? kExitOk : kExitUsage;
}

}  // namespace

void Context::PrintJson(const google::protobuf::Message& message) const {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string line;
  const auto status = google::protobuf::util::MessageToJsonString(message, &line, options);
  SKEIN_CHECK(status.ok());
  terminal->Raw(line + "\n");
}

void AddServerOption(CLI::App* command, Context* context) {
  command->add_option("--server", context->server, "address of skeind, host:port")
      ->type_name("ADDRESS")
      ->default_str(context->server);
  context->security.AddOptions(command);
}

void AddJsonOption(CLI::App* command, Context* context, const std::string& help) {
  command->add_flag("--json", context->json, help);
}

grpc::Status ReadInput(const std::string& argument, bool has_argument, const std::string& file,
                       bool must_be_text, Terminal* terminal, std::string* text) {
  if (has_argument && !file.empty()) {
    return FromAbsl(
        absl::InvalidArgumentError("give the text as an argument or as --file, not both"));
  }
  if (has_argument) {
    *text = argument;
  } else if (!file.empty() && file != "-") {
    auto contents = base::ReadFile(file);
    if (!contents.ok()) return FromAbsl(contents.status());
    *text = *std::move(contents);
  } else if (file == "-" || !terminal->input_is_terminal()) {
    terminal->ReadAll(text);
  } else {
    return FromAbsl(absl::InvalidArgumentError(
        "there is no text: give it as an argument, as --file, or pipe it in"));
  }
  if (must_be_text && !engine::IsValidUtf8(*text)) {
    return FromAbsl(absl::InvalidArgumentError("the text is not UTF-8"));
  }
  return grpc::Status::OK;
}

int RunSkein(int argc, const char* const* argv, Terminal* terminal) {
  Context context;
  context.server = DefaultServer();
  context.terminal = terminal;
  CLI::App app("skein: talk to skeind, the RWKV server", "skein");
  Build(&app, &context);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return ReportParse(app, error, terminal);
  }
  if (context.json) terminal->BePlain();
  grpc::Status status = FromAbsl(context.security.Load(context.server));
  if (status.ok()) status = context.run();
  if (!status.ok()) {
    terminal->Error(context.json ? DescribeJson(status, context.server)
                                 : absl::StrCat("error: ", Describe(status, context.server)));
    return ExitCodeOf(status);
  }
  if (!terminal->good()) {
    terminal->Error("error: the output could not be written");
    return kExitFailed;
  }
  return context.exit_code;
}

}  // namespace skein::client
