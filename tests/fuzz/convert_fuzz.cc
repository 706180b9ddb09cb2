// Any bytes as any request: an error that can be sent, or a command within the limits. The first
// byte chooses the message, the rest is its wire form.

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/base/check.h"
#include "google/protobuf/stubs/logging.h"
#include "google/rpc/status.pb.h"
#include "server/convert.h"
#include "server/grpc_status.h"
#include "server/wire.h"

namespace skein::server {
namespace {

// Small limits, so that they are met.
struct Fixture {
  Fixture() {
    google::protobuf::SetLogHandler(nullptr);  // as skeind does
    config.limits.prompt_tokens = 64;
    config.limits.max_tokens = 32;
    config.limits.stop_strings = 3;
    config.limits.stop_string_bytes = 8;
    config.limits.stop_token_ids = 3;
    config.limits.logit_bias = 4;
    config.limits.score_continuations = 4;
    config.defaults.max_tokens = 16;
  }
  ServerConfig config;
  const std::unique_ptr<engine::Tokenizer> tokenizer = engine::NewByteTokenizer();
  const engine::ChatTemplate chat = *engine::ChatTemplate::Create("rwkv", {});
  const ServedModel model{"tiny", tokenizer.get(), &chat, 257};
  const Converter converter{config, model};
};

void CheckIds(const std::vector<int32_t>& ids, int32_t V) {
  for (const int32_t id : ids) SKEIN_CHECK(id >= 0 && id < V);
}

void CheckLimits(const GenerateCommand& command, const Fixture& f) {
  const engine::GenerateRequest& r = command.request;
  const LimitsConfig& limits = f.config.limits;
  SKEIN_CHECK(static_cast<int64_t>(r.input.size()) <= limits.prompt_tokens);
  CheckIds(r.input, f.model.V);
  SKEIN_CHECK(r.stopping.max_tokens >= 0 && r.stopping.max_tokens <= limits.max_tokens);
  SKEIN_CHECK(r.stopping.max_time >= absl::ZeroDuration());
  SKEIN_CHECK(r.sampling.temperature >= 0 && r.sampling.top_p > 0 && r.sampling.top_p <= 1);
  SKEIN_CHECK(command.output.top_logprobs >= 0 &&
              command.output.top_logprobs <= limits.top_logprobs);
}

void CheckLimits(const ScoreCommand& command, const Fixture& f) {
  SKEIN_CHECK(static_cast<int64_t>(command.continuations.size()) <=
              f.config.limits.score_continuations);
  for (const auto& continuation : command.continuations) CheckIds(continuation, f.model.V);
}

void CheckLimits(const std::vector<int32_t>& ids, const Fixture& f) { CheckIds(ids, f.model.V); }
void CheckLimits(const std::string&, const Fixture&) {}

// What leaves must be a message that every client can read, and fit into trailers.
void CheckError(const absl::Status& status) {
  const grpc::Status out = ToGrpc(status, absl::Seconds(1));
  google::rpc::Status details;
  SKEIN_CHECK(details.ParseFromString(out.error_details()));
  SKEIN_CHECK(details.message() == out.error_message());
  SKEIN_CHECK(engine::IsValidUtf8(out.error_message()));
  SKEIN_CHECK(details.details_size() > 0);
}

template <typename Request, typename Convert>
void Try(absl::string_view bytes, const Fixture& fixture, Convert convert) {
  Request request;
  grpc::Slice slice(bytes.data(), bytes.size());
  const absl::Status parsed = Parse(grpc::ByteBuffer(&slice, 1), &request);
  if (!parsed.ok()) return CheckError(parsed);
  const auto command = convert(request);
  if (command.ok()) {
    CheckLimits(*command, fixture);
  } else {
    CheckError(command.status());
  }
}

void TryAll(uint8_t kind, absl::string_view bytes) {
  static const auto& f = *new Fixture();
  switch (kind % 4) {
    case 0:
      return Try<v1::GenerateRequest>(bytes, f,
                                      [](const auto& r) { return f.converter.ToEngine(r); });
    case 1:
      return Try<v1::ScoreRequest>(bytes, f, [](const auto& r) { return f.converter.ToEngine(r); });
    case 2:
      return Try<v1::TokenizeRequest>(bytes, f,
                                      [](const auto& r) { return f.converter.Tokenize(r); });
    case 3:
      return Try<v1::DetokenizeRequest>(bytes, f,
                                        [](const auto& r) { return f.converter.Detokenize(r); });
  }
}

}  // namespace
}  // namespace skein::server

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  skein::server::TryAll(data[0], {reinterpret_cast<const char*>(data + 1), size - 1});
  return 0;
}
