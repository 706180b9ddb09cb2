#pragma once
// grpc.health.v1.Health: whether the server takes requests. Our own and not gRPC's, so that it is
// authenticated, counted and answered like every other RPC. Thread-safe.

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.pb.h"
#include "server/rpc.h"

namespace skein::server {

class HealthWatch;

// The state that all ports show: all services serve or none.
class HealthBoard {
 public:
  // Full names; the empty name, for the whole server, is there too.
  explicit HealthBoard(std::vector<std::string> services);

  void SetServing(bool serving);
  // Ends all watches, now and later, so that the server can go.
  void Close();

  grpc::health::v1::HealthCheckResponse::ServingStatus StatusOf(const std::string& service) const;
  // From now on the watch is told; `watch` removes itself at its end.
  void Add(const std::shared_ptr<HealthWatch>& watch);
  void Remove(const std::shared_ptr<HealthWatch>& watch);

 private:
  const std::set<std::string> services_;
  mutable absl::Mutex mu_;
  bool serving_ ABSL_GUARDED_BY(mu_) = false;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  // Each also owned by gRPC until its end.
  std::set<std::shared_ptr<HealthWatch>> watches_ ABSL_GUARDED_BY(mu_);
};

class HealthService final {
 public:
  static constexpr char kName[] = "grpc.health.v1.Health";

  // `board` outlives the service.
  HealthService(const ServiceContext& services, HealthBoard* board)
      : services_(services), board_(board) {}

  // Refers to this.
  Service methods();

 private:
  void Check(Call call, const Bytes& in);
  void Watch(Call call, const Bytes& in);

  const ServiceContext services_;
  HealthBoard* const board_;
};

}  // namespace skein::server
