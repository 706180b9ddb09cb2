#pragma once
// skein.v1.Conversations. Thread-safe.

#include "server/call.h"
#include "skein/v1/conversations.grpc.pb.h"

namespace skein::server {

using RawConversations = v1::Conversations::WithRawCallbackMethod_Create<
    v1::Conversations::WithRawCallbackMethod_Get<v1::Conversations::WithRawCallbackMethod_List<
        v1::Conversations::WithRawCallbackMethod_Delete<
            v1::Conversations::WithRawCallbackMethod_Fork<
                v1::Conversations::WithRawCallbackMethod_Rewind<v1::Conversations::Service>>>>>>;

class ConversationsService final : public RawConversations {
 public:
  static constexpr char kName[] = "skein.v1.Conversations";

  explicit ConversationsService(const ServiceContext& services) : services_(services) {}

  using Context = grpc::CallbackServerContext;
  using Bytes = grpc::ByteBuffer;
  grpc::ServerUnaryReactor* Create(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Get(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* List(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Delete(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Fork(Context* context, const Bytes* in, Bytes* out) override;
  grpc::ServerUnaryReactor* Rewind(Context* context, const Bytes* in, Bytes* out) override;

 private:
  // Page of the versions after `after`.
  absl::Status AddHistory(const engine::ConversationKey& key, int64_t after, int32_t size,
                          v1::Conversation* response) const;
  // With the name of its model, if that is served.
  v1::Conversation Show(const engine::ConversationInfo& info) const;
  engine::ConversationStore& store() const { return *services_.conversations; }

  const ServiceContext services_;
};

}  // namespace skein::server
