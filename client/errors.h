#pragma once
// How a failed call is told: one line with code, message, details of google.rpc and what to do; and
// the exit code.

#include <string>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"

namespace skein::client {

// Exit codes of `skein`, also told by --help.
enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,         // INTERNAL, DATA_LOSS, UNKNOWN, output that cannot be written
  kExitUsage = 2,          // wrong command line
  kExitUnreachable = 3,    // no server at the address
  kExitNotFound = 4,       // NOT_FOUND
  kExitRefused = 5,        // INVALID_ARGUMENT, FAILED_PRECONDITION, ALREADY_EXISTS, OUT_OF_RANGE
  kExitTryLater = 6,       // RESOURCE_EXHAUSTED, UNAVAILABLE (draining), ABORTED (busy)
  kExitDeadline = 7,       // DEADLINE_EXCEEDED
  kExitDenied = 8,         // UNAUTHENTICATED, PERMISSION_DENIED
  kExitUnimplemented = 9,  // UNIMPLEMENTED
  kExitInterrupted = 130,  // Ctrl-C
};

std::string CodeName(grpc::StatusCode code);
// The reason of its ErrorInfo; empty when it has none.
std::string ReasonOf(const grpc::Status& status);
// How long the server asks to wait (RetryInfo), in seconds; negative when it does not.
double RetrySecondsOf(const grpc::Status& status);

// "NOT_FOUND: no conversation 'x' (CONVERSATION_NOT_FOUND); `skein conversations list` shows those
// that exist". `server` is the address that was called; empty for an error of our own.
std::string Describe(const grpc::Status& status, const std::string& server);
// The same as one line of JSON: {"error": {"code", "message", "reason", "fields", "retry_seconds",
// "advice"}}.
std::string DescribeJson(const grpc::Status& status, const std::string& server);
int ExitCodeOf(const grpc::Status& status);

// An error of our own: files, options. Never gets advice about the server.
grpc::Status FromAbsl(const absl::Status& status);

// UNAVAILABLE that came from no server of ours: nobody listens, or something else does.
bool IsUnreachable(const grpc::Status& status);

}  // namespace skein::client
