#include "server/reflection_service.h"

#include <utility>

#include "server/reflection.h"
#include "server/wire.h"

namespace skein::server {
namespace {

using grpc::reflection::v1::ServerReflectionRequest;

// Reads, answers, writes, reads: one operation is always in flight, so that a cancelled call ends
// by that one's failure.
class ReflectionStream final : public grpc::ServerGenericBidiReactor {
 public:
  ReflectionStream(Call call, const std::vector<std::string>* services)
      : call_(std::move(call)), services_(services) {
    if (call_.access().ok()) {
      StartRead(&bytes_);
    } else {
      End(call_.access());
    }
  }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());  // no more requests, or the client is gone
    ServerReflectionRequest request;
    if (const absl::Status status = call_.Parse(bytes_, &request); !status.ok()) return End(status);
    Serialize(Reflect(request, *services_), &bytes_);
    StartWrite(&bytes_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return End(absl::CancelledError("the client is gone"));
    StartRead(&bytes_);
  }
  void OnDone() override { delete this; }

  void End(const absl::Status& status) { Finish(call_.End(status)); }

  Call call_;
  const std::vector<std::string>* const services_;
  grpc::ByteBuffer bytes_;  // belongs to the operation in flight
};

}  // namespace

grpc::ServerGenericBidiReactor* NewReflection(const ServiceContext& context, Method method,
                                              grpc::CallbackServerContext* call,
                                              const std::vector<std::string>* services) {
  return new ReflectionStream(Call(context, method, call), services);
}

}  // namespace skein::server
