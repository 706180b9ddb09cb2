#include "server/conversations_service.h"

#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr int32_t kDefaultPage = 100;
constexpr int32_t kMaxPage = 1000;

engine::ConversationKey KeyOf(const Call& call, const std::string& id) {
  return {call.principal().tenant, id};
}

}  // namespace

grpc::ServerUnaryReactor* ConversationsService::Create(Context* context, const Bytes* in,
                                                       Bytes* out) {
  return Unary<v1::CreateConversationRequest, v1::Conversation>(
      services_, {kName, "Create"}, context, in, out,
      [this](const Call& call, const v1::CreateConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        if (request.has_prompt_state()) return NotBuilt("prompt_state");
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", /*allow_empty=*/true));
        if (!request.has_conversation()) {
          SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                                 store().Create(KeyOf(call, request.id())));
          *response = ToProto(info);
          return absl::OkStatus();
        }
        const v1::ForkSource& from = request.conversation();
        SKEIN_RETURN_IF_ERROR(
            CheckConversationId(from.conversation_id(), "conversation.conversation_id", false));
        std::optional<int64_t> version;
        if (from.has_version()) version = from.version();
        std::vector<std::string> ids;
        if (!request.id().empty()) ids.push_back(request.id());
        SKEIN_ASSIGN_OR_RETURN(const auto copies,
                               store().Fork(KeyOf(call, from.conversation_id()), version, 1, ids));
        *response = ToProto(copies.at(0));
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ConversationsService::Get(Context* context, const Bytes* in, Bytes* out) {
  return Unary<v1::GetConversationRequest, v1::Conversation>(
      services_, {kName, "Get"}, context, in, out,
      [this](const Call& call, const v1::GetConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", false));
        if (!v1::View_IsValid(request.view())) return BadField("view", "unknown value");
        SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                               store().Get(KeyOf(call, request.id())));
        *response = ToProto(info);
        if (request.view() != v1::VIEW_HISTORY) return absl::OkStatus();
        SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(""));
        SKEIN_ASSIGN_OR_RETURN(const auto versions, store().History(KeyOf(call, request.id())));
        for (const engine::VersionInfo& version : versions) {
          *response->add_versions() = model.converter().ToProto(version);
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ConversationsService::List(Context* context, const Bytes* in,
                                                     Bytes* out) {
  return Unary<v1::ListConversationsRequest, v1::ListConversationsResponse>(
      services_, {kName, "List"}, context, in, out,
      [this](const Call& call, const v1::ListConversationsRequest& request,
             v1::ListConversationsResponse* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id_prefix(), "id_prefix", true));
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.page_token(), "page_token", true));
        const int32_t size = request.page_size() == 0 ? kDefaultPage : request.page_size();
        if (size < 1 || size > kMaxPage) {
          return BadField("page_size",
                          absl::StrCat("is ", size, ", must be in [1, ", kMaxPage, "]"));
        }
        // One more tells whether there is a next page.
        const auto found = store().List(call.principal().tenant, request.id_prefix(),
                                        request.page_token(), size + 1);
        for (size_t i = 0; i < found.size() && i < static_cast<size_t>(size); ++i) {
          *response->add_conversations() = ToProto(found[i]);
        }
        if (found.size() > static_cast<size_t>(size))
          response->set_next_page_token(found[size - 1].id);
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ConversationsService::Delete(Context* context, const Bytes* in,
                                                       Bytes* out) {
  return Unary<v1::DeleteConversationRequest, v1::DeleteConversationResponse>(
      services_, {kName, "Delete"}, context, in, out,
      [this](const Call& call, const v1::DeleteConversationRequest& request,
             v1::DeleteConversationResponse*) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", false));
        return store().Delete(KeyOf(call, request.id()));
      });
}

grpc::ServerUnaryReactor* ConversationsService::Fork(Context* context, const Bytes* in,
                                                     Bytes* out) {
  return Unary<v1::ForkConversationRequest, v1::ForkConversationResponse>(
      services_, {kName, "Fork"}, context, in, out,
      [this](const Call& call, const v1::ForkConversationRequest& request,
             v1::ForkConversationResponse* response) -> absl::Status {
        FieldViolations bad;
        CheckId(request.id(), "id", 256, false, &bad);
        const int32_t count = request.count() == 0 ? 1 : request.count();
        const int64_t limit = services_.config->Get()->limits.forks;
        if (count < 1 || count > limit) {
          bad.Add("count",
                  absl::StrCat("is ", count, ", must be in [1, ", limit, "] (limits.forks)"));
        }
        if (request.new_ids_size() != 0 && request.new_ids_size() != count) {
          bad.Add("new_ids", absl::StrCat("has ", request.new_ids_size(),
                                          " entries, must have none or ", count));
        }
        for (int i = 0; i < request.new_ids_size(); ++i) {
          CheckId(request.new_ids(i), absl::StrCat("new_ids[", i, "]"), 256, false, &bad);
        }
        if (!bad.empty()) return bad.ToStatus();
        std::optional<int64_t> version;
        if (request.has_version()) version = request.version();
        const std::vector<std::string> ids(request.new_ids().begin(), request.new_ids().end());
        SKEIN_ASSIGN_OR_RETURN(const auto copies,
                               store().Fork(KeyOf(call, request.id()), version, count, ids));
        for (const engine::ConversationInfo& copy : copies) {
          *response->add_conversations() = ToProto(copy);
        }
        return absl::OkStatus();
      });
}

grpc::ServerUnaryReactor* ConversationsService::Rewind(Context* context, const Bytes* in,
                                                       Bytes* out) {
  return Unary<v1::RewindConversationRequest, v1::Conversation>(
      services_, {kName, "Rewind"}, context, in, out,
      [this](const Call& call, const v1::RewindConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", false));
        SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                               store().Rewind(KeyOf(call, request.id()), request.version()));
        *response = ToProto(info);
        return absl::OkStatus();
      });
}

}  // namespace skein::server
