// Errors on the wire: code, message and google.rpc details.

#include "server/grpc_status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "google/protobuf/any.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace skein::server {
namespace {

google::rpc::Status Details(const grpc::Status& status) {
  google::rpc::Status out;
  EXPECT_TRUE(out.ParseFromString(status.error_details()));
  EXPECT_EQ(out.code(), status.error_code());
  EXPECT_EQ(out.message(), status.error_message());
  return out;
}

template <typename T>
std::optional<T> Find(const grpc::Status& status) {
  const google::rpc::Status details = Details(status);
  T detail;
  for (const auto& any : details.details()) {
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

TEST(ToGrpc, OkHasNoDetails) {
  const grpc::Status status = ToGrpc(absl::OkStatus(), absl::Seconds(1));
  EXPECT_TRUE(status.ok());
  EXPECT_TRUE(status.error_details().empty());
}

TEST(ToGrpc, EveryErrorCarriesErrorInfo) {
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status =
        ToGrpc(absl::Status(static_cast<absl::StatusCode>(code), "why"), absl::Seconds(1));
    EXPECT_EQ(status.error_code(), code);
    const auto info = Find<google::rpc::ErrorInfo>(status);
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->domain(), "skein");
    EXPECT_EQ(info->reason(), CodeName(static_cast<absl::StatusCode>(status.error_code())));
  }
}

TEST(ToGrpc, ReasonOfTheEngineIsKept) {
  const grpc::Status status = ToGrpc(
      base::MakeStatus(absl::StatusCode::kAborted, "CONVERSATION_BUSY", "busy"), absl::Seconds(1));
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(status)->reason(), "CONVERSATION_BUSY");
  EXPECT_FALSE(Find<google::rpc::RetryInfo>(status).has_value());
}

TEST(ToGrpc, RetryInfoWhereWaitingHelps) {
  const absl::Duration delay = absl::Milliseconds(1250);
  for (const absl::Status& status :
       {base::MakeStatus(absl::StatusCode::kResourceExhausted, "QUEUE_FULL", "full"),
        base::MakeStatus(absl::StatusCode::kUnavailable, "DRAINING", "drain")}) {
    const auto retry = Find<google::rpc::RetryInfo>(ToGrpc(status, delay));
    ASSERT_TRUE(retry.has_value());
    EXPECT_EQ(retry->retry_delay().seconds(), 1);
    EXPECT_EQ(retry->retry_delay().nanos(), 250000000);
  }
  const absl::Status slow =
      base::MakeStatus(absl::StatusCode::kResourceExhausted, "SLOW_READER", "slow");
  EXPECT_FALSE(Find<google::rpc::RetryInfo>(ToGrpc(slow, delay)).has_value());
  const absl::Status quota = base::WaitingDoesNotHelp(
      base::MakeStatus(absl::StatusCode::kResourceExhausted, "TENANT_QUOTA", "delete some"));
  EXPECT_FALSE(Find<google::rpc::RetryInfo>(ToGrpc(quota, delay)).has_value());
  EXPECT_FALSE(IsRetryable(quota));
}

TEST(ToGrpc, PreconditionsNameTheirType) {
  const grpc::Status plain = ToGrpc(
      base::MakeStatus(absl::StatusCode::kFailedPrecondition, "VERSION_MISMATCH", "head is 3"),
      absl::Seconds(1));
  EXPECT_EQ(Find<google::rpc::PreconditionFailure>(plain)->violations(0).type(),
            "VERSION_MISMATCH");
  const grpc::Status own =
      ToGrpc(Precondition("NO_CHAT_TEMPLATE", "tiny", "none"), absl::Seconds(1));
  EXPECT_EQ(Find<google::rpc::PreconditionFailure>(own)->violations(0).subject(), "tiny");
}

TEST(FieldViolations, AllAreTold) {
  FieldViolations bad;
  EXPECT_TRUE(bad.ToStatus().ok());
  bad.Add("a.b", "is wrong");
  bad.Add("c[1]", "too");
  const grpc::Status status = ToGrpc(bad.ToStatus(), absl::Seconds(1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const auto detail = Find<google::rpc::BadRequest>(status);
  ASSERT_EQ(detail->field_violations_size(), 2);
  EXPECT_EQ(detail->field_violations(1).field(), "c[1]");
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("a.b: is wrong; c[1]: too"));
}

TEST(FieldViolations, StayWithinTheMetadataLimit) {
  FieldViolations bad;
  for (int i = 0; i < 10000; ++i) bad.Add(std::string(100, 'f'), "is wrong");
  const grpc::Status status = ToGrpc(bad.ToStatus(), absl::Seconds(1));
  EXPECT_LT(status.error_message().size() + status.error_details().size(), 8192u);
}

TEST(ToGrpc, LongMessagesAreCutAtACodePoint) {
  std::string message = "x";
  while (message.size() < 5000) message += "ü";
  const grpc::Status status = ToGrpc(absl::InternalError(message), absl::Seconds(1));
  EXPECT_LT(status.error_message().size(), 1100u);
  Details(status);  // would not serialise as a proto3 string otherwise
  EXPECT_EQ(status.error_message()[status.error_message().size() - 4], '\xbc');
}

// A request id or a model's name may be as long as a message.
TEST(ToGrpc, LongMetadataIsCut) {
  const std::string name(3 << 20, 'x');
  const grpc::Status status =
      ToGrpc(WithErrorInfo(absl::NotFoundError(name), "MODEL_NOT_FOUND", {{"name", name}}),
             absl::Seconds(1));
  EXPECT_LT(status.error_message().size() + status.error_details().size(), 8192u);
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(status)->metadata().at("name").size(), 1027u);
}

TEST(NotBuilt, NamesTheField) {
  const grpc::Status status = ToGrpc(NotBuilt("constraint"), absl::Seconds(1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_EQ(Find<google::rpc::ErrorInfo>(status)->metadata().at("field"), "constraint");
}

}  // namespace
}  // namespace skein::server
