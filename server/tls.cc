#include "server/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <sys/stat.h>

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "grpc/grpc_security.h"

namespace skein::server {
namespace {

struct Free {
  void operator()(BIO* p) const { BIO_free(p); }
  void operator()(X509* p) const { X509_free(p); }
  void operator()(EVP_PKEY* p) const { EVP_PKEY_free(p); }
};
using Certificate = std::unique_ptr<X509, Free>;
using PrivateKey = std::unique_ptr<EVP_PKEY, Free>;

std::unique_ptr<BIO, Free> Reader(const std::string& text) {
  std::unique_ptr<BIO, Free> bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
  SKEIN_CHECK(bio != nullptr);
  return bio;
}

// The next certificate; null at the end or at a bad one.
Certificate NextCertificate(BIO* in) {
  Certificate found(PEM_read_bio_X509(in, nullptr, nullptr, nullptr));
  ERR_clear_error();
  return found;
}

// Without this, OpenSSL would ask for a passphrase on the terminal.
int NoPassphrase(char*, int, int, void* asked) {
  *static_cast<bool*>(asked) = true;
  return -1;
}

absl::StatusOr<PrivateKey> ReadKey(const std::string& text) {
  bool asked = false;
  PrivateKey key(PEM_read_bio_PrivateKey(Reader(text).get(), nullptr, NoPassphrase, &asked));
  ERR_clear_error();
  if (key != nullptr) return key;
  return absl::InvalidArgumentError(asked ? "the key has a passphrase; store it without one"
                                          : "holds no private key in PEM form");
}

absl::Time ExpiryOf(const X509& certificate) {
  tm when{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(&certificate), &when) != 1) return absl::InfinitePast();
  return absl::FromTM(when, absl::UTCTimeZone());
}

// The earliest end in a chain.
absl::StatusOr<absl::Time> CheckChain(const std::string& chain) {
  const auto in = Reader(chain);
  absl::Time expiry = absl::InfiniteFuture();
  int count = 0;
  while (const Certificate certificate = NextCertificate(in.get())) {
    expiry = std::min(expiry, ExpiryOf(*certificate));
    ++count;
  }
  if (count == 0) return absl::InvalidArgumentError("holds no certificate in PEM form");
  if (expiry <= absl::Now()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expired on ", absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", expiry, absl::UTCTimeZone())));
  }
  return expiry;
}

absl::Status In(const char* key, const std::string& file, const absl::Status& status) {
  return absl::InvalidArgumentError(
      absl::StrCat("listen.tls.", key, ": ", file, ": ", status.message()));
}

absl::StatusOr<std::string> Read(const char* key, const std::string& file) {
  if (file.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("listen.tls.", key, " is empty"));
  }
  auto text = base::ReadFile(file);
  if (text.ok()) return text;
  return absl::InvalidArgumentError(
      absl::StrCat("listen.tls.", key, ": ", text.status().message()));
}

// gRPC 1.51 offers certificates that change only in its C interface; this lends them to the C++
// one. One for each port, since it remembers which certificates the port has.
class PortCredentials final : public grpc::ServerCredentials {
 public:
  PortCredentials(const CertificateSource* source, grpc_ssl_client_certificate_request_type request)
      : source_(source) {
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(request, Fetch, this));
    SKEIN_CHECK(credentials_ != nullptr);
  }
  ~PortCredentials() override { grpc_server_credentials_release(credentials_); }

  // Never used: Call authenticates (server/call.h).
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {
    SKEIN_CHECK(false);
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  // Before each handshake, under a lock of gRPC's.
  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self_pointer, grpc_ssl_server_certificate_config** config) {
    auto* self = static_cast<PortCredentials*>(self_pointer);
    const auto [certificates, generation] = self->source_->Current();
    if (generation == self->generation_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair{certificates->key.c_str(), certificates->chain.c_str()};
    // This way into gRPC wants authorities also where clients are not asked for certificates, and
    // then does not use them: any certificate will do.
    const std::string& ca =
        certificates->client_ca.empty() ? certificates->chain : certificates->client_ca;
    *config = grpc_ssl_server_certificate_config_create(ca.c_str(), &pair, 1);
    self->generation_ = generation;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const CertificateSource* source_;
  grpc_server_credentials* credentials_;
  int64_t generation_ = -1;
};

}  // namespace

absl::StatusOr<Certificates> LoadCertificates(const TlsConfig& config) {
  Certificates out;
  SKEIN_ASSIGN_OR_RETURN(out.chain, Read("certificate", config.certificate));
  SKEIN_ASSIGN_OR_RETURN(out.key, Read("key", config.key));
  const absl::StatusOr<absl::Time> expiry = CheckChain(out.chain);
  if (!expiry.ok()) return In("certificate", config.certificate, expiry.status());
  out.expiry = *expiry;
  const absl::StatusOr<PrivateKey> key = ReadKey(out.key);
  if (!key.ok()) return In("key", config.key, key.status());
  const Certificate own = NextCertificate(Reader(out.chain).get());
  const bool match = X509_check_private_key(own.get(), key->get()) == 1;
  ERR_clear_error();
  if (!match) {
    return In("key", config.key,
              absl::InvalidArgumentError(
                  absl::StrCat("is not the key of the certificate in ", config.certificate)));
  }
  if (config.client_ca.empty()) return out;
  SKEIN_ASSIGN_OR_RETURN(out.client_ca, Read("client_ca", config.client_ca));
  const absl::StatusOr<absl::Time> ca = CheckChain(out.client_ca);
  if (!ca.ok()) return In("client_ca", config.client_ca, ca.status());
  return out;
}

std::string CertificateSource::Stamp(const TlsConfig& config) {
  std::string stamp;
  for (const std::string& file : {config.certificate, config.key, config.client_ca}) {
    struct stat info {};
    if (stat(file.c_str(), &info) != 0) info = {};
    absl::StrAppend(&stamp, info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                    info.st_mtim.tv_nsec, "\n");
  }
  return stamp;
}

CertificateSource::CertificateSource(const TlsConfig& config, std::string stamp,
                                     Certificates certificates)
    : require_client_certificate_(config.require_client_certificate),
      config_(config),
      stamp_(std::move(stamp)) {
  absl::MutexLock lock(&mu_);
  Use(std::move(certificates));
}

void CertificateSource::Use(Certificates certificates) {
  certificates_ = std::make_shared<const Certificates>(std::move(certificates));
  ++generation_;
}

absl::StatusOr<std::unique_ptr<CertificateSource>> CertificateSource::Create(
    const TlsConfig& config) {
  std::string stamp = Stamp(config);  // before the files are read: a change meanwhile is seen later
  SKEIN_ASSIGN_OR_RETURN(Certificates certificates, LoadCertificates(config));
  return std::unique_ptr<CertificateSource>(
      new CertificateSource(config, std::move(stamp), std::move(certificates)));
}

std::shared_ptr<grpc::ServerCredentials> CertificateSource::NewCredentials() {
  absl::MutexLock lock(&mu_);
  const auto request = certificates_->client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                       : require_client_certificate_
                           ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                           : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
  return std::make_shared<PortCredentials>(this, request);
}

absl::StatusOr<bool> CertificateSource::Refresh() {
  absl::MutexLock lock(&mu_);
  std::string stamp = Stamp(config_);
  if (stamp == stamp_) return false;
  stamp_ = std::move(stamp);
  SKEIN_ASSIGN_OR_RETURN(Certificates certificates, LoadCertificates(config_));
  Use(std::move(certificates));
  return true;
}

absl::Status CertificateSource::Replace(const TlsConfig& config) {
  std::string stamp = Stamp(config);
  SKEIN_ASSIGN_OR_RETURN(Certificates certificates, LoadCertificates(config));
  absl::MutexLock lock(&mu_);
  if (certificates.client_ca.empty() != certificates_->client_ca.empty()) {
    return absl::InvalidArgumentError(
        "listen.tls.client_ca: to ask clients for certificates, or no longer, takes a restart");
  }
  config_ = config;
  stamp_ = std::move(stamp);
  Use(std::move(certificates));
  return absl::OkStatus();
}

absl::Time CertificateSource::expiry() const {
  absl::MutexLock lock(&mu_);
  return certificates_->expiry;
}

std::pair<std::shared_ptr<const Certificates>, int64_t> CertificateSource::Current() const {
  absl::MutexLock lock(&mu_);
  return {certificates_, generation_};
}

}  // namespace skein::server
