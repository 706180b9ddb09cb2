#pragma once
// Decides who calls and whether they may: bearer tokens or client certificates against a list of
// clients, and the table of scopes (access.h). Thread-safe; the list can be replaced while calls
// run.

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "server/access.h"
#include "server/principal.h"

namespace skein::server {

using Sha256Digest = std::array<uint8_t, 32>;

Sha256Digest DigestOf(absl::string_view token);

// What a call shows of its caller. The views live as long as the call.
struct Credentials {
  std::vector<absl::string_view> authorization;  // every value of that header
  std::vector<absl::string_view> certificate;    // names in a verified client certificate
};

// The clients that are known: constant.
class ClientList {
 public:
  // `token`: the digest of the client's bearer token. A digest or certificate name that is there
  // already is an error.
  absl::Status AddToken(const Sha256Digest& token, Principal principal);
  // `name`: the common name, or a DNS name or URI, of the certificate.
  absl::Status AddCertificate(const std::string& name, Principal principal);

  bool empty() const { return tokens_.empty() && certificates_.empty(); }
  // nullptr when unknown.
  std::shared_ptr<const Principal> ByToken(absl::string_view token) const;
  std::shared_ptr<const Principal> ByCertificate(absl::string_view name) const;

 private:
  // Only digests are kept, and only the digest of what a caller sends is compared, so time tells
  // nothing about a token; the last comparison is constant-time all the same.
  struct SameDigest {
    bool operator()(const Sha256Digest& a, const Sha256Digest& b) const;
  };
  absl::flat_hash_map<Sha256Digest, std::shared_ptr<const Principal>, absl::Hash<Sha256Digest>,
                      SameDigest>
      tokens_;
  absl::flat_hash_map<std::string, std::shared_ptr<const Principal>> certificates_;
};

// No name, no tenant, no scope.
const std::shared_ptr<const Principal>& Nobody();

class Authenticator {
 public:
  // Authentication off: everybody is the anonymous principal, who has every scope and no tenant.
  Authenticator();

  // From now on callers must be among `clients`. Calls that run keep their principal.
  void Replace(std::shared_ptr<const ClientList> clients, bool open_health);
  // Authentication off.
  void Disable();

  // UNAUTHENTICATED (TOKEN_MISSING, TOKEN_INVALID), or PERMISSION_DENIED (SCOPE_MISSING,
  // METHOD_NOT_LISTED). Never null when OK.
  absl::StatusOr<std::shared_ptr<const Principal>> Authenticate(
      absl::string_view service, absl::string_view method, const Credentials& credentials) const;

 private:
  const std::shared_ptr<const Principal> anonymous_;
  mutable absl::Mutex mu_;
  std::shared_ptr<const ClientList> clients_ ABSL_GUARDED_BY(mu_);  // nullptr: authentication off
  bool open_health_ ABSL_GUARDED_BY(mu_) = true;
};

}  // namespace skein::server
