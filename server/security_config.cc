#include "server/security_config.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/listener.h"
#include "server/tls.h"

namespace skein::server {
namespace {

constexpr size_t kMaxName = 64;

// Names and tenants show up in logs, metrics and keys.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name.size() <= kMaxName &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
         });
}

absl::Status CheckName(absl::string_view what, const std::string& name) {
  if (IsPlainName(name)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " '", absl::CHexEscape(name),
                                                 "' must be 1 to ", kMaxName,
                                                 " letters, digits, '-', '_' or '.'"));
}

absl::StatusOr<Sha256Digest> ParseHash(const std::string& text) {
  Sha256Digest digest;
  const bool hex = text.size() == 2 * digest.size() &&
                   std::all_of(text.begin(), text.end(), absl::ascii_isxdigit);
  if (!hex) {
    return absl::InvalidArgumentError(
        "hash must be the SHA-256 of the token, 64 hexadecimal digits; `skeind token create` "
        "prints it");
  }
  const std::string bytes = absl::HexStringToBytes(text);
  std::copy(bytes.begin(), bytes.end(), digest.begin());
  return digest;
}

absl::StatusOr<Principal> ToPrincipal(const ClientConfig& client) {
  Principal principal{client.name, client.tenant.empty() ? client.name : client.tenant, {}, {}};
  SKEIN_RETURN_IF_ERROR(CheckName("the name", principal.name));
  SKEIN_RETURN_IF_ERROR(CheckName("the tenant", principal.tenant));
  for (const std::string& name : client.scopes) {
    const std::optional<Scope> scope = FindScope(name);
    if (!scope.has_value()) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no scope '", absl::CHexEscape(name),
                       "'; there are generate, conversations, state_io and admin"));
    }
    principal.scopes.Add(*scope);
  }
  principal.quotas = client.quotas;
  return principal;
}

absl::Status AddTo(ClientList* list, const ClientConfig& client, const engine::Quotas& quotas) {
  SKEIN_ASSIGN_OR_RETURN(Principal principal, ToPrincipal(client));
  principal.quotas = quotas;
  if (client.hash.empty() == client.certificate.empty()) {
    return absl::InvalidArgumentError("needs either a hash or a certificate");
  }
  if (!client.certificate.empty()) return list->AddCertificate(client.certificate, principal);
  SKEIN_ASSIGN_OR_RETURN(const Sha256Digest digest, ParseHash(client.hash));
  return list->AddToken(digest, std::move(principal));
}

// Quotas are the tenant's: any of its clients may state them, and those that do must agree.
absl::StatusOr<std::map<std::string, engine::Quotas>> QuotasByTenant(
    const std::vector<ClientConfig>& clients) {
  std::map<std::string, engine::Quotas> out;
  for (const ClientConfig& client : clients) {
    const std::string& tenant = client.tenant.empty() ? client.name : client.tenant;
    if (client.quotas == engine::Quotas()) continue;
    const auto [it, added] = out.try_emplace(tenant, client.quotas);
    if (!added && !(it->second == client.quotas)) {
      return absl::InvalidArgumentError(
          absl::StrCat("auth.tokens: two clients of the tenant '", absl::CHexEscape(tenant),
                       "' state different quotas; they hold for the tenant, so one is enough"));
    }
  }
  return out;
}

absl::Status CheckTls(const TlsConfig& tls, const AuthConfig& auth) {
  if (!tls.enabled() && !(tls.key.empty() && tls.client_ca.empty())) {
    return absl::InvalidArgumentError(
        "listen.tls.certificate is empty, but other keys of "
        "listen.tls are set");
  }
  if (tls.require_client_certificate && tls.client_ca.empty()) {
    return absl::InvalidArgumentError(
        "listen.tls.require_client_certificate needs listen.tls.client_ca");
  }
  const bool by_certificate =
      std::any_of(auth.tokens.begin(), auth.tokens.end(),
                  [](const ClientConfig& c) { return !c.certificate.empty(); });
  if (by_certificate && tls.client_ca.empty()) {
    return absl::InvalidArgumentError(
        "auth.tokens: a client is recognised by its certificate, which needs "
        "listen.tls.client_ca");
  }
  return tls.enabled() ? LoadCertificates(tls).status() : absl::OkStatus();
}

absl::Status CheckAddress(const char* key, const std::string& address, const ListenConfig& listen,
                          const AuthConfig& auth) {
  if (address.empty()) return absl::InvalidArgumentError(absl::StrCat(key, " is empty"));
  if (!IsAddress(address)) {
    return absl::InvalidArgumentError(absl::StrCat(
        key, ": '", address, "' is no address: host:port, [v6 address]:port or unix:/path"));
  }
  if (listen.allow_insecure_public || IsLoopback(address)) return absl::OkStatus();
  const bool knows_callers = auth.enabled() || listen.tls.require_client_certificate;
  if (listen.tls.enabled() && knows_callers) return absl::OkStatus();
  const char* lacks = listen.tls.enabled() ? "no tokens (auth.tokens)"
                      : knows_callers      ? "no TLS (listen.tls)"
                                           : "neither TLS (listen.tls) nor tokens (auth.tokens)";
  return absl::InvalidArgumentError(
      absl::StrCat(key, ": other machines can reach '", address, "', and there are ", lacks,
                   "; set listen.allow_insecure_public to true if that is what you want"));
}

absl::Status CheckMetrics(const ListenConfig& listen) {
  if (listen.metrics.empty()) return absl::OkStatus();
  absl::string_view host, port;
  if (!SplitHostPort(listen.metrics, &host, &port)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "listen.metrics: '", listen.metrics, "' is no address: host:port or [v6 address]:port"));
  }
  if (listen.allow_public_metrics || listen.allow_insecure_public || IsLoopback(listen.metrics)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("listen.metrics: other machines can reach '", listen.metrics,
                   "', and the metrics are plain HTTP for everybody, whatever listen.tls and "
                   "auth.tokens say; set "
                   "listen.allow_public_metrics to true if that is what you want"));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const ClientList>> LoadClients(const AuthConfig& auth) {
  std::vector<ClientConfig> clients = auth.tokens;
  if (!auth.tokens_file.empty()) {
    std::vector<ClientConfig> more;
    base::YamlSchema schema;
    schema.AddRecords<ClientConfig>("tokens", &more, AddClient, "clients");
    if (absl::Status status = schema.LoadFile(auth.tokens_file); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("auth.tokens_file: ", status.message()));
    }
    clients.insert(clients.end(), more.begin(), more.end());
  }
  SKEIN_ASSIGN_OR_RETURN(const auto quotas, QuotasByTenant(clients));
  auto list = std::make_shared<ClientList>();
  for (const ClientConfig& client : clients) {
    const auto found = quotas.find(client.tenant.empty() ? client.name : client.tenant);
    const absl::Status status =
        AddTo(list.get(), client, found == quotas.end() ? engine::Quotas() : found->second);
    if (!status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("auth.tokens: client '", absl::CHexEscape(client.name),
                                       "': ", status.message()));
    }
  }
  return list;
}

absl::Status ValidateSecurity(const ListenConfig& listen, const AuthConfig& auth) {
  SKEIN_RETURN_IF_ERROR(CheckTls(listen.tls, auth));
  if (auth.enabled()) SKEIN_RETURN_IF_ERROR(LoadClients(auth).status());
  SKEIN_RETURN_IF_ERROR(CheckAddress("listen.address", listen.address, listen, auth));
  SKEIN_RETURN_IF_ERROR(CheckMetrics(listen));
  if (listen.control.empty()) return absl::OkStatus();
  return CheckAddress("listen.control", listen.control, listen, auth);
}

absl::Status Configure(const AuthConfig& auth, Authenticator* authenticator) {
  if (!auth.enabled()) {
    authenticator->Disable();
    return absl::OkStatus();
  }
  SKEIN_ASSIGN_OR_RETURN(std::shared_ptr<const ClientList> clients, LoadClients(auth));
  authenticator->Replace(std::move(clients), auth.open_health);
  return absl::OkStatus();
}

}  // namespace skein::server
