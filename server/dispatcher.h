#pragma once
// Finds who serves a call, by its path. Thread-safe.

#include <functional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "grpcpp/generic/async_generic_service.h"
#include "server/rpc.h"

namespace skein::server {

class Dispatcher final : public grpc::CallbackGenericService {
 public:
  // Serves these and reflection of them. Every method of each must be there.
  Dispatcher(const ServiceContext& services, const std::vector<Service>& served);

  // The full names of the services.
  const std::vector<std::string>& names() const { return names_; }

 private:
  using Begin = std::function<grpc::ServerGenericBidiReactor*(grpc::CallbackServerContext*)>;

  void Add(const Service& service);
  void AddReflection(Method method);
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

  // Constant after construction.
  const ServiceContext services_;
  std::vector<std::string> names_;
  absl::flat_hash_map<std::string, Begin> methods_;  // by path
};

}  // namespace skein::server
