#pragma once
// skein.v1.Control: operating the server while it serves. Thread-safe.

#include "absl/status/statusor.h"
#include "server/config_reload.h"
#include "server/lifecycle.h"
#include "server/model_manager.h"
#include "server/rpc.h"
#include "skein/v1/control.pb.h"

namespace skein::server {

class ControlService final {
 public:
  static constexpr char kName[] = "skein.v1.Control";

  explicit ControlService(const ServiceContext& services) : services_(services) {}

  // Refers to this.
  Service methods();

 private:
  void LoadModel(Call call, const Bytes& in);
  void UnloadModel(Call call, const Bytes& in);
  void GetLoad(Call call, const Bytes& in);
  void Drain(Call call, const Bytes& in);
  void Undrain(Call call, const Bytes& in);
  void ReloadConfig(Call call, const Bytes& in);

  const ServiceContext services_;
};

}  // namespace skein::server
