// How errors are told: the line, the JSON and the exit code; and the command line itself.

#include "client/errors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/client/fake_server.h"

namespace skein::client {
namespace {

using ::testing::HasSubstr;

TEST(ErrorsTest, TellsEveryWrongField) {
  google::rpc::BadRequest bad;
  const auto add = [&](const char* field, const char* description) {
    bad.add_field_violations()->set_field(field);
    bad.mutable_field_violations(bad.field_violations_size() - 1)->set_description(description);
  };
  add("sampling.top_p", "must be in (0, 1]");
  add("stopping.max_tokens", "at most 4096");
  const grpc::Status status =
      WithDetail(grpc::StatusCode::INVALID_ARGUMENT, "2 fields are wrong", {&bad});
  EXPECT_EQ(Describe(status, "x"),
            "INVALID_ARGUMENT: 2 fields are wrong; sampling.top_p: must be in (0, 1]; "
            "stopping.max_tokens: at most 4096");
  EXPECT_EQ(ExitCodeOf(status), kExitRefused);
  const grpc::Status said =
      WithDetail(grpc::StatusCode::INVALID_ARGUMENT,
                 "sampling.top_p: must be in (0, 1]; stopping.max_tokens: at most 4096", {&bad});
  EXPECT_EQ(
      Describe(said, "x"),
      "INVALID_ARGUMENT: sampling.top_p: must be in (0, 1]; stopping.max_tokens: at most 4096");
}

TEST(ErrorsTest, TellsReasonAndWhenToRetry) {
  google::rpc::ErrorInfo info;
  info.set_reason("QUEUE_FULL");
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  const grpc::Status status =
      WithDetail(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", {&info, &retry});
  EXPECT_EQ(Describe(status, "x"),
            "RESOURCE_EXHAUSTED: the queue is full (QUEUE_FULL); try again in 1.5 s");
  EXPECT_EQ(ExitCodeOf(status), kExitTryLater);
  EXPECT_EQ(
      DescribeJson(status, "x"),
      R"({"error":{"advice":"try again later","code":"RESOURCE_EXHAUSTED","message":"the queue is full",)"
      R"("reason":"QUEUE_FULL","retry_seconds":1.5}})");
}

TEST(ErrorsTest, TellsPreconditions) {
  google::rpc::PreconditionFailure failure;
  failure.add_violations()->set_subject("conversations/a");
  failure.mutable_violations(0)->set_description("the head is 4");
  const grpc::Status status =
      WithDetail(grpc::StatusCode::FAILED_PRECONDITION, "version mismatch", {&failure});
  EXPECT_EQ(Describe(status, "x"),
            "FAILED_PRECONDITION: version mismatch; conversations/a: the head is 4");
  const grpc::Status said =
      WithDetail(grpc::StatusCode::FAILED_PRECONDITION, "the head is 4", {&failure});
  EXPECT_EQ(Describe(said, "x"), "FAILED_PRECONDITION: the head is 4");
}

TEST(ErrorsTest, NobodyListening) {
  const Outcome outcome = RunClient({"info", "--server", "127.0.0.1:1"});
  EXPECT_EQ(outcome.code, kExitUnreachable);
  EXPECT_THAT(outcome.err, HasSubstr("is skeind running on 127.0.0.1:1? `make serve` starts one"));
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(RunClient({"chat", "--server", "127.0.0.1:1"}, "hi\n").code, kExitUnreachable);
  EXPECT_EQ(RunClient({"generate", "--server", "127.0.0.1:1", "hi"}).code, kExitUnreachable);
}

TEST(ErrorsTest, AServerThatSaysUnavailableIsThere) {
  google::rpc::ErrorInfo info;
  info.set_reason("DRAINING");
  const grpc::Status status = WithDetail(grpc::StatusCode::UNAVAILABLE, "shutting down", {&info});
  EXPECT_EQ(ExitCodeOf(status), kExitTryLater);
  EXPECT_EQ(Describe(status, "x"), "UNAVAILABLE: shutting down (DRAINING); try again later");
}

TEST(ErrorsTest, ExitCodesDiffer) {
  const auto code = [](grpc::StatusCode c) { return ExitCodeOf(grpc::Status(c, "")); };
  EXPECT_EQ(code(grpc::StatusCode::OK), kExitOk);
  EXPECT_EQ(code(grpc::StatusCode::INTERNAL), kExitFailed);
  EXPECT_EQ(code(grpc::StatusCode::NOT_FOUND), kExitNotFound);
  EXPECT_EQ(code(grpc::StatusCode::ABORTED), kExitTryLater);
  EXPECT_EQ(code(grpc::StatusCode::DEADLINE_EXCEEDED), kExitDeadline);
  EXPECT_EQ(code(grpc::StatusCode::PERMISSION_DENIED), kExitDenied);
  EXPECT_EQ(code(grpc::StatusCode::UNIMPLEMENTED), kExitUnimplemented);
  EXPECT_EQ(code(grpc::StatusCode::CANCELLED), kExitInterrupted);
}

TEST(ErrorsTest, OurOwnErrorsBlameNoServer) {
  const grpc::Status status = FromAbsl(absl::NotFoundError("cannot open 'x'"));
  EXPECT_EQ(Describe(status, "127.0.0.1:1"), "cannot open 'x'");
  EXPECT_EQ(ExitCodeOf(status), kExitNotFound);
}

TEST(CommandLineTest, HelpAndWrongUse) {
  for (const std::string command :
       {"chat", "generate", "conversations", "info", "tokenize", "score"}) {
    const Outcome help = RunClient({command, "--help"});
    EXPECT_EQ(help.code, kExitOk) << command;
    EXPECT_THAT(help.out, HasSubstr("Usage: skein " + command)) << command;
    if (command == "conversations") continue;  // its own subcommands have it
    EXPECT_THAT(help.out, HasSubstr("--json")) << command;
  }
  EXPECT_EQ(RunClient({}).code, kExitUsage);
  EXPECT_EQ(RunClient({"frob"}).code, kExitUsage);
  EXPECT_EQ(RunClient({"generate", "--temperature", "warm", "x"}).code, kExitUsage);
  EXPECT_THAT(RunClient({"generate", "--logit-bias", "3", "x"}).err,
              HasSubstr("'3' is not ID=VALUE"));
  EXPECT_EQ(RunClient({"generate", "--max-time", "-1", "x"}).code, kExitUsage);
  EXPECT_EQ(RunClient({"--version"}).out, "skein 0.1.0\n");
}

}  // namespace
}  // namespace skein::client
