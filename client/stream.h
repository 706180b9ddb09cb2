#pragma once
// One Generate call from start to end, with Ctrl-C as the Stop button.

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "client/connection.h"
#include "client/interrupt.h"
#include "grpcpp/support/status.h"

namespace skein::client {

struct StreamResult {
  std::optional<v1::Started> started;  // both are there when the status is OK
  std::optional<v1::Finished> finished;
  std::string text;
  double seconds = 0;              // of the whole call, seen from here
  double first_text_seconds = -1;  // < 0: there was no text
};

// The first Ctrl-C sends Cancel, so that the stream ends with Finished CANCELLED; a second one, or
// a server that does not know the request, ends the call itself. Gives the request an id when it
// has none. `deadline` zero: none.
grpc::Status RunGenerate(Connection& connection, v1::GenerateRequest request,
                         std::chrono::duration<double> deadline, Interrupts* interrupts,
                         const std::function<void(const v1::GenerateResponse&)>& on_response,
                         StreamResult* result);

// "12 tokens, 45.1 tokens/s, first after 23 ms", and why it ended when that was not the model's
// choice.
std::string Summary(const v1::Finished& finished, bool in_conversation);

}  // namespace skein::client
