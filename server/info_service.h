#pragma once
// skein.v1.Info. Thread-safe.

#include "server/rpc.h"
#include "skein/v1/info.pb.h"

namespace skein::server {

class InfoService final {
 public:
  static constexpr char kName[] = "skein.v1.Info";

  explicit InfoService(const ServiceContext& services) : services_(services), start_(absl::Now()) {}

  // Refers to this.
  Service methods();

 private:
  void GetServerInfo(Call call, const Bytes& in);
  void ListModels(Call call, const Bytes& in);

  const ServiceContext services_;
  const absl::Time start_;
};

}  // namespace skein::server
