#include "server/wire.h"

#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "engine/tokenizer.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/wire_format_lite.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "grpcpp/support/slice.h"
#include "server/status.h"

namespace skein::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;

// The path within `payload`, a value of `field`, or empty.
std::string CheckField(const FieldDescriptor& field, absl::string_view payload) {
  if (field.type() == FieldDescriptor::TYPE_STRING) {
    return engine::IsValidUtf8(payload) ? "" : std::string(field.name());
  }
  if (field.type() != FieldDescriptor::TYPE_MESSAGE) return "";
  const std::string inner = FindInvalidUtf8(*field.message_type(), payload);
  return inner.empty() ? "" : absl::StrCat(field.name(), ".", inner);
}

std::string ToString(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string out;
  if (!bytes.Dump(&slices).ok()) return out;
  for (const grpc::Slice& s : slices)
    out.append(reinterpret_cast<const char*>(s.begin()), s.size());
  return out;
}

}  // namespace

// Depth is bounded by the message types, which do not contain themselves.
std::string FindInvalidUtf8(const Descriptor& type, absl::string_view bytes) {
  CodedInputStream in(reinterpret_cast<const uint8_t*>(bytes.data()),
                      static_cast<int>(bytes.size()));
  std::map<int, int> seen;  // of repeated fields
  while (const uint32_t tag = in.ReadTag()) {
    if (WireFormatLite::GetTagWireType(tag) != WireFormatLite::WIRETYPE_LENGTH_DELIMITED) {
      if (!WireFormatLite::SkipField(&in, tag)) return "";
      continue;
    }
    uint32_t size = 0;
    if (!in.ReadVarint32(&size)) return "";
    const int start = in.CurrentPosition();
    if (size > bytes.size() - start || !in.Skip(static_cast<int>(size))) return "";
    const int number = WireFormatLite::GetTagFieldNumber(tag);
    const FieldDescriptor* field = type.FindFieldByNumber(number);
    if (field == nullptr) continue;
    std::string path = CheckField(*field, bytes.substr(start, size));
    const int index = seen[number]++;
    if (path.empty()) continue;
    if (!field->is_repeated()) return path;
    return absl::StrCat(field->name(), "[", index, "]", path.substr(field->name().size()));
  }
  return "";
}

std::string LeadingString(const grpc::ByteBuffer& bytes, int field, size_t max) {
  grpc::ByteBuffer copy = bytes;  // shares the slices
  grpc::ProtoBufferReader reader(&copy);
  if (!reader.status().ok()) return "";
  CodedInputStream in(&reader);
  const uint32_t tag = WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
  uint32_t size = 0;
  std::string value;
  if (in.ReadTag() != tag || !in.ReadVarint32(&size) || size > max) return "";
  return in.ReadString(&value, static_cast<int>(size)) ? value : "";
}

absl::Status Parse(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  {
    grpc::ByteBuffer copy = bytes;  // shares the slices
    grpc::ProtoBufferReader reader(&copy);
    if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return absl::OkStatus();
  }
  const Descriptor& type = *message->GetDescriptor();
  const std::string path = FindInvalidUtf8(type, ToString(bytes));
  if (!path.empty()) return BadField(path, "is not valid UTF-8");
  return base::MakeStatus(absl::StatusCode::kInvalidArgument, "MALFORMED_MESSAGE",
                          absl::StrCat("the bytes are not a valid ", type.full_name()));
}

void Serialize(const google::protobuf::Message& message, grpc::ByteBuffer* bytes) {
  grpc::Slice slice(message.ByteSizeLong());
  SKEIN_CHECK(message.SerializeToArray(const_cast<uint8_t*>(slice.begin()),
                                       static_cast<int>(slice.size())));
  grpc::ByteBuffer out(&slice, 1);
  bytes->Swap(&out);
}

}  // namespace skein::server
