#include "client/security.h"

#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/support/client_interceptor.h"

namespace skein::client {
namespace {

// Sends the token with each call. gRPC's own call credentials would do so over TLS only, but a
// token may also go to this machine's loopback.
class TokenSender final : public grpc::experimental::Interceptor {
 public:
  explicit TokenSender(const std::string& header) : header_(header) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    using grpc::experimental::InterceptionHookPoints;
    if (methods->QueryInterceptionHookPoint(InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", header_});
    }
    methods->Proceed();
  }

 private:
  const std::string header_;
};

class TokenSenders final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit TokenSenders(const std::string& token) : header_(absl::StrCat("Bearer ", token)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new TokenSender(header_);  // gRPC owns it
  }

 private:
  const std::string header_;
};

bool IsThisMachine(const std::string& server) {
  for (const char* prefix : {"127.", "localhost:", "[::1]:", "unix:"}) {
    if (absl::StartsWith(server, prefix)) return true;
  }
  return server == "localhost";
}

absl::Status Read(const std::string& file, std::string* text) {
  if (file.empty()) return absl::OkStatus();
  SKEIN_ASSIGN_OR_RETURN(*text, base::ReadFile(file));
  return absl::OkStatus();
}

}  // namespace

void Security::AddOptions(CLI::App* app) {
  if (const char* set = std::getenv("SKEIN_TOKEN"); set != nullptr) token = set;
  app->add_flag("--tls", tls, "encrypt; the server's certificate must be one the system trusts");
  app->add_option("--ca", ca, "PEM file: trust the authorities in it instead; means --tls")
      ->type_name("FILE");
  auto* certificate_option =
      app->add_option("--cert", certificate, "PEM file: our certificate; means --tls")
          ->type_name("FILE");
  auto* key_option = app->add_option("--key", key, "PEM file: its private key")->type_name("FILE");
  certificate_option->needs(key_option);
  key_option->needs(certificate_option);
  app->add_option("--token", token,
                  "who we are; SKEIN_TOKEN in the environment is not seen by other users")
      ->type_name("TOKEN");
}

absl::Status Security::Load(const std::string& server) {
  tls = tls || !ca.empty() || !certificate.empty();
  SKEIN_RETURN_IF_ERROR(Read(ca, &ca_pem));
  SKEIN_RETURN_IF_ERROR(Read(certificate, &certificate_pem));
  SKEIN_RETURN_IF_ERROR(Read(key, &key_pem));
  if (tls || token.empty() || IsThisMachine(server)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the token would go to ", server, " for everybody to read; add --tls or --ca"));
}

std::shared_ptr<grpc::Channel> Security::Connect(const std::string& server,
                                                 const grpc::ChannelArguments& arguments) const {
  const auto credentials = tls ? grpc::SslCredentials({ca_pem, key_pem, certificate_pem})
                               : grpc::InsecureChannelCredentials();
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> senders;
  if (!token.empty()) senders.push_back(std::make_unique<TokenSenders>(token));
  return grpc::experimental::CreateCustomChannelWithInterceptors(server, credentials, arguments,
                                                                 std::move(senders));
}

}  // namespace skein::client
