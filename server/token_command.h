#pragma once
// `skeind token create`: a new token, shown once, and its line for the configuration.

#include <string>

#include "absl/status/statusor.h"
#include "server/config.h"

namespace CLI {
class App;
}

namespace skein::server {

// 256 random bits as text. It begins with "skein_", so that scanners for leaked secrets know it.
std::string NewToken();

// What the configuration keeps of a token. One round of SHA-256 and no salt: a password needs a
// slow hash because it can be guessed; 256 random bits cannot, and a fast one costs each call
// nothing.
std::string HashOf(const std::string& token);

// The output of the command: the token and the line of `client`, whose hash is set here. An error
// names what the configuration would refuse.
absl::StatusOr<std::string> CreateToken(ClientConfig client);

// The command on the command line.
class TokenCommand {
 public:
  // Outlives the parsing.
  explicit TokenCommand(CLI::App* app);
  bool chosen() const;
  int Run() const;  // the exit code

 private:
  CLI::App* create_;
  ClientConfig client_;
};

}  // namespace skein::server
