#pragma once
// What every subcommand of `skein` shares. A subcommand is one file with one Add function: it
// declares its options and stores in Context::run what is done when it was chosen.

#include <functional>
#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "client/connection.h"
#include "client/terminal.h"
#include "grpcpp/support/status.h"

namespace skein::client {

inline constexpr char kDefaultServer[] = "127.0.0.1:50051";

struct Context {
  std::string server;
  Security security;
  bool json = false;
  Terminal* terminal = nullptr;
  // Set by the chosen subcommand. A status that is not OK is printed and decides the exit code.
  std::function<grpc::Status()> run;
  int exit_code = 0;  // of a run that ended with OK

  Connection Connect(bool own_socket = false) const {
    return Connection(server, security, own_socket);
  }
  // One message as a line of JSON on the standard output.
  void PrintJson(const google::protobuf::Message& message) const;
};

// --server with what belongs to the connection, and --json.
void AddServerOption(CLI::App* command, Context* context);
void AddJsonOption(CLI::App* command, Context* context, const std::string& help);

void AddChat(CLI::App* app, Context* context);
void AddGenerate(CLI::App* app, Context* context);
void AddConversations(CLI::App* app, Context* context);
void AddInfo(CLI::App* app, Context* context);
void AddLoad(CLI::App* app, Context* context);
void AddModels(CLI::App* app, Context* context);
void AddServer(CLI::App* app, Context* context);
void AddTokenize(CLI::App* app, Context* context);
void AddScore(CLI::App* app, Context* context);
void AddEvaluate(CLI::App* app, Context* context);

// The whole program, on a terminal of the caller's choice. Returns the exit code.
int RunSkein(int argc, const char* const* argv, Terminal* terminal);

// What the user typed as an argument, in a file ("-": standard input), or else what is piped in, in
// this order. Fails when there is none, or when it is not UTF-8 and `must_be_text`.
grpc::Status ReadInput(const std::string& argument, bool has_argument, const std::string& file,
                       bool must_be_text, Terminal* terminal, std::string* text);

}  // namespace skein::client
