#pragma once
// Who calls, and what they may do.

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "engine/quotas.h"

namespace skein::server {

enum class Scope : uint8_t {
  kGenerate = 1,  // Generation: requests, also those that continue a conversation of the tenant
  kConversations = 2,  // Conversations: create, read, list, fork, rewind, delete
  kStateIo = 4,        // states as files; no RPC asks for it so far
  kAdmin = 8,          // Control
};

// A set of scopes.
class Scopes {
 public:
  constexpr Scopes() = default;
  static constexpr Scopes All() { return Scopes(15); }
  void Add(Scope scope) { bits_ |= static_cast<uint8_t>(scope); }
  bool Has(Scope scope) const { return (bits_ & static_cast<uint8_t>(scope)) != 0; }

 private:
  explicit constexpr Scopes(uint8_t bits) : bits_(bits) {}
  uint8_t bits_ = 0;
};

struct Principal {
  std::string name;  // for logs; of the config, never the secret
  std::string
      tenant;  // whose conversations and quotas; empty: the one tenant without authentication
  Scopes scopes;
  engine::Quotas quotas;  // of the tenant
};

// "generate", "conversations", "state_io", "admin".
const char* ScopeName(Scope scope);
std::optional<Scope> FindScope(absl::string_view name);

}  // namespace skein::server
