#pragma once
// What the configuration says about who may connect and call, checked and read.

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/authenticator.h"
#include "server/config.h"

namespace skein::server {

// An address that others can reach needs TLS and a way to know callers, and that of the metrics,
// which has neither, a key that says so; certificates and tokens must be usable. Reads their files.
// Errors name the key.
absl::Status ValidateSecurity(const ListenConfig& listen, const AuthConfig& auth);

// The clients of the configuration and of its file. Errors name the client.
absl::StatusOr<std::shared_ptr<const ClientList>> LoadClients(const AuthConfig& auth);

// Puts the configuration in force; calls that run keep their principal.
absl::Status Configure(const AuthConfig& auth, Authenticator* authenticator);

}  // namespace skein::server
