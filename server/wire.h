#pragma once
// Bytes of the wire <-> messages. gRPC's own parsing answers a bad message with UNIMPLEMENTED and
// no text; ours says which field is wrong.

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"

namespace skein::server {

// INVALID_ARGUMENT with BadRequest: names the first string field that is not UTF-8, or says that
// the bytes are no such message.
absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);
void Serialize(const google::protobuf::Message& message, grpc::ByteBuffer* bytes);

// The value of this string field when it comes first in the message, as encoders write the field
// with the least number, and has at most `max` bytes; else empty. Looks at nothing behind it.
std::string LeadingString(const grpc::ByteBuffer& bytes, int field, size_t max);

// The path of the first string field in the encoded message that is not UTF-8
// ("messages.messages[2].content"); empty when there is none. `bytes` is untrusted.
std::string FindInvalidUtf8(const google::protobuf::Descriptor& type, absl::string_view bytes);

}  // namespace skein::server
