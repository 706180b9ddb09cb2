#pragma once
// SKEIN_CHECK: for our own mistakes and device faults only, never for input. Prints and aborts.

#include <cstdio>
#include <cstdlib>

namespace skein::base {
[[noreturn]] inline void CheckFailed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, expression);
  std::fflush(stderr);
  std::abort();
}
}  // namespace skein::base

#define SKEIN_CHECK(expression) \
  ((expression) ? (void)0 : ::skein::base::CheckFailed(#expression, __FILE__, __LINE__))

// For functions that return absl::Status or absl::StatusOr.
#define SKEIN_CONCAT_(a, b) a##b
#define SKEIN_CONCAT(a, b) SKEIN_CONCAT_(a, b)
#define SKEIN_RETURN_IF_ERROR(expression)                                          \
  do {                                                                             \
    if (auto skein_status = (expression); !skein_status.ok()) return skein_status; \
  } while (false)
#define SKEIN_ASSIGN_OR_RETURN(lhs, expression) \
  SKEIN_ASSIGN_OR_RETURN_(SKEIN_CONCAT(skein_statusor_, __LINE__), lhs, expression)
#define SKEIN_ASSIGN_OR_RETURN_(tmp, lhs, expression) \
  auto tmp = (expression);                            \
  if (!tmp.ok()) return tmp.status();                 \
  lhs = std::move(tmp).value()
