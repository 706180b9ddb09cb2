#pragma once
// The certificates of the listening ports: read, checked and replaced while connections live. A bad
// file never replaces a good certificate. For gRPC 1.51: its own watcher of files takes whatever it
// finds and leaves the port without a certificate when that is bad.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "server/config.h"

namespace skein::server {

// PEM texts that fit together.
struct Certificates {
  std::string chain, key, client_ca;
  absl::Time expiry;  // of the first one of the chain that ends
};

// Reads the files. Errors name the key, the file and what is wrong with it: missing, no PEM, a key
// with a passphrase, a key of another certificate, expired.
absl::StatusOr<Certificates> LoadCertificates(const TlsConfig& config);

// Thread-safe. Outlives the servers that use its credentials.
class CertificateSource {
 public:
  static absl::StatusOr<std::unique_ptr<CertificateSource>> Create(const TlsConfig& config);

  // Credentials for one port. Each new connection gets the certificates of then.
  std::shared_ptr<grpc::ServerCredentials> NewCredentials();

  // Reads the files again if one of them has changed since the last look; true when there are new
  // certificates in force. After an error the old ones stay, and the same files are not told again.
  absl::StatusOr<bool> Refresh();
  // The same from other files; `require_client_certificate` stays as it was.
  absl::Status Replace(const TlsConfig& config);
  absl::Time expiry() const;

  // Those in force, and a number that changes with them.
  std::pair<std::shared_ptr<const Certificates>, int64_t> Current() const;

 private:
  // What tells whether files were written: time, size and inode of each.
  static std::string Stamp(const TlsConfig& config);
  CertificateSource(const TlsConfig& config, std::string stamp, Certificates certificates);
  void Use(Certificates certificates) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const bool require_client_certificate_;
  mutable absl::Mutex mu_;
  TlsConfig config_ ABSL_GUARDED_BY(mu_);
  std::string stamp_ ABSL_GUARDED_BY(mu_);  // of the files at the last look
  std::shared_ptr<const Certificates> certificates_ ABSL_GUARDED_BY(mu_);
  int64_t generation_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace skein::server
