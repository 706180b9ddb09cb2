#pragma once
// skein.v1.Conversations. Thread-safe.

#include "server/rpc.h"
#include "skein/v1/conversations.pb.h"

namespace skein::server {

class ConversationsService final {
 public:
  static constexpr char kName[] = "skein.v1.Conversations";

  explicit ConversationsService(const ServiceContext& services) : services_(services) {}

  // Refers to this.
  Service methods();

 private:
  void Create(Call call, const Bytes& in);
  void Get(Call call, const Bytes& in);
  void List(Call call, const Bytes& in);
  void Delete(Call call, const Bytes& in);
  void Fork(Call call, const Bytes& in);
  void Rewind(Call call, const Bytes& in);

  // Page of the versions after `after`.
  absl::Status AddHistory(const engine::ConversationKey& key, int64_t after, int32_t size,
                          v1::Conversation* response) const;
  // With the name of its model, if that is served.
  v1::Conversation Show(const engine::ConversationInfo& info) const;
  engine::ConversationStore& store() const { return *services_.conversations; }

  const ServiceContext services_;
};

}  // namespace skein::server
