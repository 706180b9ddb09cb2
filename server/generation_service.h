#pragma once
// skein.v1.Generation. Thread-safe.

#include "server/rpc.h"
#include "skein/v1/generation.pb.h"

namespace skein::server {

class GenerationService final {
 public:
  static constexpr char kName[] = "skein.v1.Generation";

  explicit GenerationService(const ServiceContext& services) : services_(services) {}

  // Refers to this.
  Service methods();

 private:
  void Generate(Call call, const Bytes& in);
  void Attach(Call call, const Bytes& in);
  void Score(Call call, const Bytes& in);
  void Cancel(Call call, const Bytes& in);
  void Tokenize(Call call, const Bytes& in);
  void Detokenize(Call call, const Bytes& in);

  const ServiceContext services_;
};

}  // namespace skein::server
