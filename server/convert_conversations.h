#pragma once
// Requests of skein.v1.Conversations -> what the store is asked, with all validation. Pure. Tenant,
// quotas and the prompt state itself are left to the caller.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/store/conversation_store.h"
#include "server/config.h"
#include "skein/v1/conversations.pb.h"

namespace skein::server {

struct CreateCommand {
  std::string id;  // empty: the store makes one
  engine::NewConversation made;
  std::string prompt_state;  // of `model`; empty: none
  std::string model;
  std::string source;              // the conversation to copy; empty: none
  std::optional<int64_t> version;  // of the source; unset: its head
};

struct GetCommand {
  std::string id;
  bool history = false;
  // Of the history: at most `size` versions after this one.
  int64_t after = 0;
  int32_t size = 0;
};

struct ForkCommand {
  std::string id;
  std::optional<int64_t> version;  // unset: the head
  int32_t count = 1;
  std::vector<std::string> new_ids;  // none, or `count`
  engine::NewConversation made;
};

absl::StatusOr<CreateCommand> ToCommand(const skein::v1::CreateConversationRequest& in);
absl::StatusOr<GetCommand> ToCommand(const skein::v1::GetConversationRequest& in);
absl::StatusOr<engine::ListQuery> ToCommand(const skein::v1::ListConversationsRequest& in);
absl::StatusOr<ForkCommand> ToCommand(const skein::v1::ForkConversationRequest& in,
                                      const LimitsConfig& limits);
absl::Status Check(const skein::v1::DeleteConversationRequest& in);
absl::Status Check(const skein::v1::RewindConversationRequest& in);

inline constexpr int32_t kMaxConversationsPage = 1000;

}  // namespace skein::server
