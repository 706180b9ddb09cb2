#pragma once
// Small pieces of text that several subcommands print.

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "google/protobuf/timestamp.pb.h"
#include "skein/v1/conversations.pb.h"

namespace skein::client {

namespace v1 = ::skein::v1;

std::string HumanBytes(int64_t bytes);                      // "12.3 MiB"
std::string LocalTime(const google::protobuf::Timestamp&);  // "2026-01-31 18:05:09"
std::string FinishReasonName(v1::FinishReason reason);      // "stop"
// In quotes, with escapes for what cannot be shown; every byte when it is not UTF-8 by itself.
std::string Quoted(absl::string_view bytes);
// At most `width` code points on one line; newlines become spaces.
std::string Preview(absl::string_view text, int width);
// Without the parts of the chat template around what a person typed.
std::string WithoutTemplate(absl::string_view text);
// "chat-1: version 3 of 5, 182 tokens, busy"
std::string OneLine(const v1::Conversation& conversation);
// "* 3 <- 2   182 tokens   stop     what went in -> what came out"; the star marks the head.
std::string OneLine(const v1::Version& version, bool head);

}  // namespace skein::client
