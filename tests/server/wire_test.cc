// Bytes of the wire: what is parsed, and how bad bytes are told.

#include "server/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/quiet_protobuf.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {
namespace {

using skein::v1::GenerateRequest;

grpc::ByteBuffer Buffer(const std::string& bytes) {
  // Two slices, as the transport may deliver them.
  const size_t half = bytes.size() / 2;
  const grpc::Slice slices[] = {grpc::Slice(bytes.substr(0, half)),
                                grpc::Slice(bytes.substr(half))};
  return grpc::ByteBuffer(slices, 2);
}

std::string Replace(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

TEST(Wire, RoundTrip) {
  GenerateRequest request, back;
  request.mutable_text()->set_text("hello ü");
  grpc::ByteBuffer bytes;
  Serialize(request, &bytes);
  ASSERT_TRUE(Parse(bytes, &back).ok());
  EXPECT_EQ(back.text().text(), "hello ü");
  EXPECT_TRUE(Parse(Buffer(""), &back).ok()) << "an empty message is a message";
  EXPECT_FALSE(back.has_text());
}

TEST(Wire, NamesTheFieldThatIsNotUtf8) {
  QuietProtobuf();
  GenerateRequest request;
  request.set_conversation_id("c");
  for (const char* content : {"fine", "BAD"}) {
    auto* message = request.mutable_messages()->add_messages();
    message->set_content(content);
  }
  request.mutable_stopping()->add_stop_strings("stop");
  request.mutable_sampling()->set_temperature(1);
  const std::string good = request.SerializeAsString();
  GenerateRequest parsed;
  EXPECT_TRUE(Parse(Buffer(good), &parsed).ok());

  const absl::Status status = Parse(Buffer(Replace(good, "BAD", "\xff\xfe!")), &parsed);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_EQ(status.message(), "messages.messages[1].content: is not valid UTF-8");
  EXPECT_EQ(FindInvalidUtf8(*request.GetDescriptor(), Replace(good, "stop", "st\xc0p")),
            "stopping.stop_strings[0]");
}

TEST(Wire, LeadingString) {
  GenerateRequest request;
  request.set_request_id("the id");
  request.mutable_text()->set_text(std::string(100000, 'x'));
  const int field = GenerateRequest::kRequestIdFieldNumber;
  const std::string bytes = request.SerializeAsString();
  EXPECT_EQ(LeadingString(Buffer(bytes), field, 6), "the id");
  EXPECT_EQ(LeadingString(Buffer(bytes), field, 5), "");
  EXPECT_EQ(LeadingString(Buffer(bytes.substr(0, 4)), field, 6), "") << "cut";
  EXPECT_EQ(LeadingString(Buffer(""), field, 6), "");
  EXPECT_EQ(LeadingString(Buffer("\x0a\xff\xff\xff\xff\x0f"), field, 6), "");
  request.clear_request_id();
  EXPECT_EQ(LeadingString(Buffer(request.SerializeAsString()), field, 1 << 20), "");
}

TEST(Wire, SaysWhenItIsNoMessage) {
  QuietProtobuf();
  GenerateRequest request;
  for (const std::string& bytes :
       {std::string("\x0a\xff\xff\xff", 4), std::string("\x0a\x05hi", 4), std::string("\x07"),
        std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff")}) {
    const absl::Status status = Parse(Buffer(bytes), &request);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("skein.v1.GenerateRequest"));
  }
}

// Every prefix and every single changed byte of a real request: parsed or refused, never anything
// else.
TEST(Wire, SurvivesDamage) {
  QuietProtobuf();
  GenerateRequest request;
  request.mutable_messages()->add_messages()->set_content("héllo");
  request.mutable_stopping()->add_stop_strings("\n\nUser");
  (*request.mutable_sampling()->mutable_logit_bias())[3] = 1;
  const std::string good = request.SerializeAsString();
  int refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    GenerateRequest parsed;
    refused += !Parse(Buffer(good.substr(0, i)), &parsed).ok();
    for (int value = 0; value < 256; ++value) {
      std::string bad = good;
      bad[i] = static_cast<char>(value);
      refused += !Parse(Buffer(bad), &parsed).ok();
    }
  }
  EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace skein::server
