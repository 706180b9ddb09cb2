#include "server/authenticator.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "engine/base/check.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr absl::string_view kBearer = "bearer ";

using Found = absl::StatusOr<std::shared_ptr<const Principal>>;

absl::Status Unauthenticated(absl::string_view reason, absl::string_view message) {
  return base::MakeStatus(absl::StatusCode::kUnauthenticated, reason, message);
}

Found Identify(const ClientList& clients, const Credentials& credentials) {
  if (credentials.authorization.empty()) {
    for (const absl::string_view name : credentials.certificate) {
      if (auto found = clients.ByCertificate(name); found != nullptr) return found;
    }
    return Unauthenticated("TOKEN_MISSING",
                           "this server wants a token: send 'authorization: Bearer <token>'");
  }
  // One identity a call: with two it would be a matter of luck which one counts.
  const absl::string_view header = credentials.authorization.front();
  if (credentials.authorization.size() > 1 || !absl::StartsWithIgnoreCase(header, kBearer)) {
    return Unauthenticated("TOKEN_INVALID",
                           "the authorization header must be one 'Bearer <token>'");
  }
  const absl::string_view token = absl::StripAsciiWhitespace(header.substr(kBearer.size()));
  if (auto found = clients.ByToken(token); found != nullptr) return found;
  return Unauthenticated("TOKEN_INVALID", "the token is not known here");
}

absl::Status Allow(const Access& access, const Principal& principal) {
  if (access.kind != Access::kScope || principal.scopes.Has(access.scope)) return absl::OkStatus();
  const char* scope = ScopeName(access.scope);
  return WithErrorInfo(absl::PermissionDeniedError(absl::StrCat(access.service, "/", access.method,
                                                                " needs the scope '", scope,
                                                                "', which this client lacks")),
                       "SCOPE_MISSING", {{"scope", scope}});
}

}  // namespace

const char* ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kGenerate:
      return "generate";
    case Scope::kConversations:
      return "conversations";
    case Scope::kStateIo:
      return "state_io";
    case Scope::kAdmin:
      return "admin";
  }
  return "";
}

std::optional<Scope> FindScope(absl::string_view name) {
  for (const Scope scope :
       {Scope::kGenerate, Scope::kConversations, Scope::kStateIo, Scope::kAdmin}) {
    if (name == ScopeName(scope)) return scope;
  }
  return std::nullopt;
}

Sha256Digest DigestOf(absl::string_view token) {
  static_assert(sizeof(Sha256Digest) == SHA256_DIGEST_LENGTH);
  Sha256Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), digest.data());
  return digest;
}

bool ClientList::SameDigest::operator()(const Sha256Digest& a, const Sha256Digest& b) const {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::Status ClientList::AddToken(const Sha256Digest& token, Principal principal) {
  const auto [it, added] = tokens_.try_emplace(token, nullptr);
  if (!added) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", principal.name, "' and '", it->second->name, "' have the same token"));
  }
  it->second = std::make_shared<const Principal>(std::move(principal));
  return absl::OkStatus();
}

absl::Status ClientList::AddCertificate(const std::string& name, Principal principal) {
  const auto [it, added] = certificates_.try_emplace(name, nullptr);
  if (!added) {
    return absl::InvalidArgumentError(absl::StrCat("'", principal.name, "' and '", it->second->name,
                                                   "' have the same certificate name"));
  }
  it->second = std::make_shared<const Principal>(std::move(principal));
  return absl::OkStatus();
}

std::shared_ptr<const Principal> ClientList::ByToken(absl::string_view token) const {
  const auto it = tokens_.find(DigestOf(token));
  return it == tokens_.end() ? nullptr : it->second;
}

std::shared_ptr<const Principal> ClientList::ByCertificate(absl::string_view name) const {
  const auto it = certificates_.find(name);
  return it == certificates_.end() ? nullptr : it->second;
}

const std::shared_ptr<const Principal>& Nobody() {
  static const auto& nobody = *new std::shared_ptr<const Principal>(new Principal());
  return nobody;
}

Authenticator::Authenticator()
    : anonymous_(std::make_shared<const Principal>(Principal{"", "", Scopes::All(), {}})) {}

void Authenticator::Replace(std::shared_ptr<const ClientList> clients, bool open_health) {
  SKEIN_CHECK(clients != nullptr);
  absl::MutexLock lock(&mu_);
  clients_ = std::move(clients);
  open_health_ = open_health;
}

void Authenticator::Disable() {
  absl::MutexLock lock(&mu_);
  clients_ = nullptr;
}

Found Authenticator::Authenticate(absl::string_view service, absl::string_view method,
                                  const Credentials& credentials) const {
  const Access* access = FindAccess(service, method);
  if (access == nullptr) {
    return base::MakeStatus(absl::StatusCode::kPermissionDenied, "METHOD_NOT_LISTED",
                            absl::StrCat("nobody may call ", service, "/", method));
  }
  std::shared_ptr<const ClientList> clients;
  bool open_health = true;
  {
    absl::MutexLock lock(&mu_);
    clients = clients_;
    open_health = open_health_;
  }
  if (clients == nullptr) return anonymous_;
  Found found = Identify(*clients, credentials);
  // A probe without a token gets its answer and has no scope.
  if (!found.ok() && access->kind == Access::kOpen && open_health) {
    return Nobody();
  }
  if (!found.ok()) return found;
  if (absl::Status status = Allow(*access, **found); !status.ok()) return status;
  return found;
}

}  // namespace skein::server
