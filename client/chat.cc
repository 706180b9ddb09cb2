// skein chat: lines to messages, lines with a slash to commands.

#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/chat_session.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/generation_flags.h"
#include "engine/base/strict_yaml.h"

namespace skein::client {
namespace {

struct SlashCommand {
  const char* name;
  const char* argument;  // "[N]": a version may follow
  const char* help;
  grpc::Status (*run)(ChatSession* session, int64_t version);
};

constexpr SlashCommand kCommands[] = {
    {"regenerate", "", "another answer to your last message; the old one stays a version",
     [](ChatSession* s, int64_t) { return s->Regenerate(); }},
    {"more", "", "go on where the answer ended", [](ChatSession* s, int64_t) { return s->More(); }},
    {"versions", "", "all versions of this conversation; * is where you are",
     [](ChatSession* s, int64_t) { return s->Versions(); }},
    {"rewind", "[N]", "back to before the last turn, or to version N",
     [](ChatSession* s, int64_t version) { return s->Rewind(version); }},
    {"fork", "[N]", "go on in a copy of this conversation (at version N)",
     [](ChatSession* s, int64_t version) { return s->Fork(version); }},
    {"new", "", "leave this conversation and begin another",
     [](ChatSession* s, int64_t) { return s->New(); }},
    {"stats", "", "server, conversation, timings of the last answer",
     [](ChatSession* s, int64_t) { return s->Stats(); }},
    {"demo", "", "play the model's examples in a conversation of their own",
     [](ChatSession* s, int64_t) { return s->Demo(); }},
};

void Help(Terminal* terminal) {
  for (const SlashCommand& command : kCommands) {
    terminal->Line(
        absl::StrFormat("  /%-10s %-4s %s", command.name, command.argument, command.help));
  }
  terminal->Line(absl::StrFormat("  /%-15s %s", "help", "this list"));
  terminal->Line(
      absl::StrFormat("  /%-15s %s", "quit", "end; so does Ctrl-D, or Ctrl-C at the prompt"));
  terminal->Line(
      "A line that ends with \\ goes on in the next one; // at the start sends a line that begins "
      "with /.");
}

// `line` without its slash.
grpc::Status RunCommand(const std::string& line, ChatSession* session, Terminal* terminal) {
  const size_t space = std::min(line.find(' '), line.size());
  const std::string name = line.substr(0, space);
  const absl::string_view argument =
      absl::StripAsciiWhitespace(absl::string_view(line).substr(space));
  if (name == "help") return Help(terminal), grpc::Status::OK;
  std::vector<std::string> names = {"help", "quit"};
  for (const SlashCommand& command : kCommands) {
    names.emplace_back(command.name);
    if (name != command.name) continue;
    int64_t version = -1;
    const bool takes_version = *command.argument != '\0';
    if (!argument.empty() &&
        (!takes_version || !absl::SimpleAtoi(argument, &version) || version < 0)) {
      return FromAbsl(absl::InvalidArgumentError(absl::StrCat(
          "/", name,
          takes_version ? " takes a version, a number from 0" : " takes nothing after it")));
    }
    return command.run(session, version);
  }
  const std::string nearest = base::Nearest(name, names);
  return FromAbsl(absl::InvalidArgumentError(absl::StrCat(
      "there is no command /", name,
      nearest.empty() ? "" : absl::StrCat("; did you mean /", nearest, "?"), " /help shows them")));
}

// One message: a line, and the next ones while a line ends with a backslash.
Terminal::Read ReadMessage(Terminal* terminal, Interrupts* interrupts, std::string* message) {
  Terminal::Read read = terminal->ReadLine("> ", interrupts, message);
  while (read == Terminal::Read::kLine && absl::EndsWith(*message, "\\")) {
    message->back() = '\n';
    std::string next;
    read = terminal->ReadLine(". ", interrupts, &next);
    if (read == Terminal::Read::kEnd) return Terminal::Read::kLine;
    *message += next;
  }
  return read;
}

grpc::Status Answer(std::string message, ChatSession* session, Terminal* terminal) {
  if (absl::StartsWith(message, "//")) return session->Say(message.substr(1));
  if (absl::StartsWith(message, "/")) {
    return RunCommand(std::string(absl::StripTrailingAsciiWhitespace(message.substr(1))), session,
                      terminal);
  }
  return session->Say(message);
}

// Until the end of the input; on a terminal an error ends a turn, elsewhere it ends the chat.
grpc::Status Loop(ChatSession* session, Interrupts* interrupts, Context* context) {
  Terminal* terminal = context->terminal;
  while (true) {
    std::string message;
    const Terminal::Read read = ReadMessage(terminal, interrupts, &message);
    if (read != Terminal::Read::kLine) {
      if (terminal->interactive()) terminal->Newline();
      if (read == Terminal::Read::kInterrupted && !terminal->interactive())
        context->exit_code = kExitInterrupted;
      return grpc::Status::OK;
    }
    const absl::string_view stripped = absl::StripAsciiWhitespace(message);
    if (stripped.empty()) continue;
    if (stripped == "/quit" || stripped == "/exit") return grpc::Status::OK;
    const grpc::Status status = Answer(std::move(message), session, terminal);
    if (status.ok()) continue;
    if (!terminal->interactive()) return status;
    terminal->Error(status.error_code() == grpc::StatusCode::CANCELLED
                        ? std::string("cancelled")
                        : absl::StrCat("error: ", Describe(status, context->server)));
  }
}

grpc::Status Run(const ChatOptions& options, Context* context) {
  Connection connection = context->Connect();
  Interrupts interrupts;
  ChatSession session(context, &connection, &interrupts, options);
  grpc::Status status = session.Open();
  if (!status.ok()) return status;
  status = Loop(&session, &interrupts, context);
  session.Close();
  return status;
}

}  // namespace

void AddChat(CLI::App* app, Context* context) {
  const auto options = std::make_shared<ChatOptions>();
  CLI::App* command = app->add_subcommand("chat", "talk to the model; lines from a pipe work too");
  AddServerOption(command, context);
  AddJsonOption(command, context, "print each GenerateResponse as a line of JSON");
  CLI::Option* conversation =
      command->add_option("-c,--conversation", options->conversation, "continue this conversation")
          ->type_name("ID");
  command->add_flag("--create", options->create, "make it when there is none")->needs(conversation);
  command
      ->add_option("--system", options->system, "what the system says first in a new conversation")
      ->type_name("TEXT");
  AddPromptStateFlag(command, [options](const std::string& name) { options->prompt_state = name; });
  AddThinkingFlag(command, [options](const std::string& mode) { options->thinking = mode; });
  command->add_flag("--stats", options->stats,
                    "in a pipe: tokens and speed of each answer, on the standard error");
  command->add_option("--deadline", options->deadline, "gRPC deadline of each answer")
      ->type_name("SECONDS");
  command
      ->add_option_function<std::string>(
          "--model", [options](const std::string& v) { options->request.set_model(v); },
          "model name")
      ->type_name("NAME");
  AddSamplingFlags(command, &options->request);
  AddStoppingFlags(command, &options->request);
  command->callback(
      [options, context] { context->run = [options, context] { return Run(*options, context); }; });
}

}  // namespace skein::client
