#include "server/token_command.h"

#include <sys/random.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "server/authenticator.h"
#include "server/security_config.h"

namespace skein::server {

std::string NewToken() {
  char bytes[32];
  SKEIN_CHECK(getrandom(bytes, sizeof(bytes), 0) == sizeof(bytes));
  return absl::StrCat("skein_", absl::WebSafeBase64Escape(absl::string_view(bytes, sizeof(bytes))));
}

std::string HashOf(const std::string& token) {
  const Sha256Digest digest = DigestOf(token);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size()));
}

absl::StatusOr<std::string> CreateToken(ClientConfig client) {
  const std::string token = NewToken();
  client.hash = HashOf(token);
  if (client.tenant.empty()) client.tenant = client.name;
  // --scopes "" is none.
  client.scopes.erase(std::remove(client.scopes.begin(), client.scopes.end(), ""),
                      client.scopes.end());
  AuthConfig auth;
  auth.tokens = {client};
  SKEIN_RETURN_IF_ERROR(LoadClients(auth).status());
  return absl::StrCat("token:  ", token, "\nconfig: - {name: \"", client.name, "\", hash: \"",
                      client.hash, "\", tenant: \"", client.tenant, "\", scopes: [",
                      absl::StrJoin(client.scopes, ", "), "]}\n");
}

TokenCommand::TokenCommand(CLI::App* app) {
  CLI::App* token = app->add_subcommand("token", "tokens of clients");
  token->require_subcommand(1);
  create_ = token->add_subcommand("create", "make a token and print its line for auth.tokens");
  create_->add_option("name", client_.name, "what logs call the client")->required();
  create_->add_option("--tenant", client_.tenant,
                      "whose conversations and quotas; default: the name");
  create_->add_option("--scopes", client_.scopes, "of generate, conversations, state_io, admin")
      ->delimiter(',')
      ->capture_default_str();
}

bool TokenCommand::chosen() const { return create_->parsed(); }

int TokenCommand::Run() const {
  const absl::StatusOr<std::string> text = CreateToken(client_);
  if (!text.ok()) {
    std::fprintf(stderr, "skeind: %s\n", std::string(text.status().message()).c_str());
    return 1;
  }
  std::fputs(text->c_str(), stdout);
  return 0;
}

}  // namespace skein::server
