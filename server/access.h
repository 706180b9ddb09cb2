#pragma once
// Which scope each RPC needs: one table for all services. A method that is not in it is refused,
// and a test compares the table with the services that are registered.

#include <optional>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/principal.h"

namespace skein::server {

struct Access {
  enum Kind {
    kOpen,    // for everybody, unless auth.open_health is off
    kClient,  // for every client that shows who it is, whatever its scopes
    kScope,   // for clients with `scope`
  };
  const char* service;
  const char* method;
  Kind kind;
  Scope scope = Scope::kAdmin;  // of kScope
};

absl::Span<const Access> AccessTable();
// nullptr: not in the table.
const Access* FindAccess(absl::string_view service, absl::string_view method);

}  // namespace skein::server
