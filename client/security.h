#pragma once
// How a connection is encrypted and who it says it is: --tls, --ca, --cert, --key, --token.

#include <memory>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "grpcpp/channel.h"
#include "grpcpp/support/channel_arguments.h"

namespace skein::client {

struct Security {
  bool tls = false;
  std::string ca, certificate, key;  // PEM files
  std::string token;

  // What the files hold, after Load.
  std::string ca_pem, certificate_pem, key_pem;

  // --token's default is SKEIN_TOKEN.
  void AddOptions(CLI::App* app);
  // After the command line is read: reads the files; refuses to send a token in the clear to
  // another machine.
  absl::Status Load(const std::string& server);
  std::shared_ptr<grpc::Channel> Connect(const std::string& server,
                                         const grpc::ChannelArguments& arguments) const;
};

}  // namespace skein::client
