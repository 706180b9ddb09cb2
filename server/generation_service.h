#pragma once
// skein.v1.Generation. Thread-safe.

#include "server/call.h"
#include "skein/v1/generation.grpc.pb.h"

namespace skein::server {

// Raw methods: requests are parsed here (wire.h), so that a malformed one gets a proper answer.
using RawGeneration = v1::Generation::WithRawCallbackMethod_Generate<
    v1::Generation::WithRawCallbackMethod_Cancel<v1::Generation::WithRawCallbackMethod_Attach<
        v1::Generation::WithRawCallbackMethod_Score<v1::Generation::WithRawCallbackMethod_Tokenize<
            v1::Generation::WithRawCallbackMethod_Detokenize<v1::Generation::Service>>>>>>;

class GenerationService final : public RawGeneration {
 public:
  static constexpr char kName[] = "skein.v1.Generation";

  explicit GenerationService(const ServiceContext& services) : services_(services) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerWriteReactor<Bytes>* Generate(Context* context, const Bytes* in) override;
  grpc::ServerWriteReactor<Bytes>* Attach(Context* context, const Bytes* in) override;
  grpc::ServerWriteReactor<Bytes>* Score(Context* context, const Bytes* in) override;
  grpc::ServerUnaryReactor* Cancel(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Tokenize(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Detokenize(Context* context, const Bytes* in, Bytes* out) override;

 private:
  const ServiceContext services_;
};

}  // namespace skein::server
