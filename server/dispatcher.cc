#include "server/dispatcher.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "google/protobuf/descriptor.h"
#include "server/reflection_service.h"

namespace skein::server {
namespace {

std::string PathOf(const char* service, const std::string& method) {
  return absl::StrCat("/", service, "/", method);
}

// Ends a call for a method that there is not; counted like others among those of its connection.
class Unknown final : public grpc::ServerGenericBidiReactor {
 public:
  explicit Unknown(std::shared_ptr<void> counted) : counted_(std::move(counted)) {
    Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "there is no such method here"));
  }
  void OnDone() override { delete this; }

 private:
  const std::shared_ptr<void> counted_;
};

}  // namespace

Dispatcher::Dispatcher(const ServiceContext& services, const std::vector<Service>& served)
    : services_(services) {
  for (const Service& service : served) Add(service);
  AddReflection(kReflection);
  AddReflection(kOldReflection);
}

void Dispatcher::Add(const Service& service) {
  names_.emplace_back(service.name);
  for (const auto& [name, handler] : service.methods) {
    methods_[PathOf(service.name, name)] = [this, method = Method{service.name, name},
                                            handler](grpc::CallbackServerContext* context) {
      Rpc* rpc = new Rpc(services_, method, context, handler);
      rpc->Begin();
      return rpc;
    };
  }
  const google::protobuf::ServiceDescriptor* type =
      google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(service.name);
  SKEIN_CHECK(type != nullptr);
  for (int i = 0; i < type->method_count(); ++i) {
    SKEIN_CHECK(methods_.contains(PathOf(service.name, type->method(i)->name())));
  }
}

void Dispatcher::AddReflection(Method method) {
  names_.emplace_back(method.service);
  methods_[PathOf(method.service, method.name)] = [this,
                                                   method](grpc::CallbackServerContext* context) {
    return NewReflection(services_, method, context, &names_);
  };
}

grpc::ServerGenericBidiReactor* Dispatcher::CreateReactor(
    grpc::GenericCallbackServerContext* context) {
  const auto found = methods_.find(context->method());
  if (found != methods_.end()) return found->second(context);
  return new Unknown(services_.connections->BeginCall(context->peer()));
}

}  // namespace skein::server
