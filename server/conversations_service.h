#pragma once
// skein.v1.Conversations. Thread-safe.

#include <cstdint>
#include <memory>

#include "server/convert_conversations.h"
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

  // A page of the versions. Without a tokenizer their text is left out, unless one may be on its
  // way (UNAVAILABLE).
  absl::Status AddHistory(const engine::ConversationKey& key, const engine::Tokenizer* tokenizer,
                          const GetCommand& command, v1::Conversation* response) const;
  // That a conversation's token ids are of; null: no model that is served has it.
  std::shared_ptr<const engine::Tokenizer> TokenizerOf(uint64_t vocabulary) const;
  // With the name of its model, if that is served.
  v1::Conversation Show(const engine::ConversationInfo& info) const;
  engine::ConversationStore& store() const { return *services_.conversations; }

  const ServiceContext services_;
};

}  // namespace skein::server
