#include "server/conversations_service.h"

#include <optional>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/status.h"

namespace skein::server {
namespace {

constexpr int32_t kDefaultPage = 100;
constexpr int32_t kMaxPage = 1000;
// Of one answer of Get, at most about that and one version: it has to fit in what clients receive
// (4 MiB by default). Each is told as an id and as text.
constexpr int64_t kHistoryTokens = 100000;
constexpr size_t kMaxId = 256;

engine::ConversationKey KeyOf(const Call& call, const std::string& id) {
  return {call.principal().tenant, id};
}

template <typename Request>
engine::NewConversation Made(const Call& call, const Request& request, FieldViolations* bad) {
  engine::NewConversation made;
  made.quotas = call.principal().quotas;
  if (request.has_ttl()) made.ttl = TakeTtl(request.ttl(), "ttl", bad);
  return made;
}

int32_t PageSize(int32_t wanted, int32_t when_unset, FieldViolations* bad) {
  if (wanted < 0 || wanted > kMaxPage) {
    bad->Add("page_size", absl::StrCat("is ", wanted, ", must be in [1, ", kMaxPage, "]"));
  }
  return wanted == 0 ? when_unset : wanted;
}

absl::Time TakeTime(const google::protobuf::Timestamp& in, absl::string_view field,
                    FieldViolations* bad) {
  // Years 1 to 9999, as the message's definition has it.
  if (in.seconds() < -62135596800 || in.seconds() > 253402300799 || in.nanos() < 0 ||
      in.nanos() > 999999999) {
    bad->Add(field, "is no valid time");
    return absl::UnixEpoch();
  }
  return absl::FromUnixSeconds(in.seconds()) + absl::Nanoseconds(in.nanos());
}

}  // namespace

v1::Conversation ConversationsService::Show(const engine::ConversationInfo& info) const {
  v1::Conversation out = ToProto(info);
  if (out.model_fingerprint().empty()) return out;
  for (const auto& [name, instance] : services_.models->Named()) {
    if (instance->description.fingerprint() == out.model_fingerprint()) out.set_model(name);
  }
  return out;
}

void ConversationsService::Create(Call call, const Bytes& in) {
  Unary<v1::CreateConversationRequest, v1::Conversation>(
      std::move(call), in,
      [this](const Call& call, const v1::CreateConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        FieldViolations bad;
        CheckId(request.id(), "id", kMaxId, /*allow_empty=*/true, &bad);
        engine::NewConversation made = Made(call, request, &bad);
        if (request.has_prompt_state() && request.prompt_state().empty()) {
          bad.Add("prompt_state", "is empty");
        }
        if (!request.model().empty() && !request.has_prompt_state()) {
          bad.Add("model", "needs a prompt_state");
        }
        const v1::ForkSource& from = request.conversation();
        if (request.has_conversation()) {
          CheckId(from.conversation_id(), "conversation.conversation_id", kMaxId, false, &bad);
        }
        if (!bad.empty()) return bad.ToStatus();
        if (request.has_prompt_state()) {
          SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(request.model()));
          SKEIN_ASSIGN_OR_RETURN(made.prompt, model.instance().prompts.Find(
                                                  request.prompt_state(), model.instance().name()));
        }
        if (!request.has_conversation()) {
          SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                                 store().Create(KeyOf(call, request.id()), made));
          *response = Show(info);
          return absl::OkStatus();
        }
        std::optional<int64_t> version;
        if (from.has_version()) version = from.version();
        std::vector<std::string> ids;
        if (!request.id().empty()) ids.push_back(request.id());
        SKEIN_ASSIGN_OR_RETURN(const auto copies, store().Fork(KeyOf(call, from.conversation_id()),
                                                               version, 1, ids, made));
        *response = Show(copies.at(0));
        return absl::OkStatus();
      });
}

void ConversationsService::Get(Call call, const Bytes& in) {
  Unary<v1::GetConversationRequest, v1::Conversation>(
      std::move(call), in,
      [this](const Call& call, const v1::GetConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        FieldViolations bad;
        CheckId(request.id(), "id", kMaxId, false, &bad);
        if (!v1::View_IsValid(request.view())) bad.Add("view", "unknown value");
        const int32_t size = PageSize(request.page_size(), kMaxPage, &bad);
        int64_t after = 0;
        if (!request.page_token().empty() &&
            (!absl::SimpleAtoi(request.page_token(), &after) || after < 0)) {
          bad.Add("page_token", "is not from an answer of Get");
        }
        if (!bad.empty()) return bad.ToStatus();
        SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                               store().Get(KeyOf(call, request.id())));
        *response = Show(info);
        if (request.view() != v1::VIEW_HISTORY) return absl::OkStatus();
        return AddHistory(KeyOf(call, request.id()), after, size, response);
      });
}

// With the tokenizer of the model that is served by default: a conversation outlives its model, and
// the ids are told beside the text.
absl::Status ConversationsService::AddHistory(const engine::ConversationKey& key, int64_t after,
                                              int32_t size, v1::Conversation* response) const {
  SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(response->model()));
  SKEIN_ASSIGN_OR_RETURN(const auto versions, store().History(key, after, size, kHistoryTokens));
  for (const engine::VersionInfo& version : versions) {
    *response->add_versions() = model.converter().ToProto(version);
    after = version.id;
  }
  SKEIN_ASSIGN_OR_RETURN(const auto more, store().History(key, after, 1, 1));
  if (!more.empty()) response->set_next_page_token(absl::StrCat(after));
  return absl::OkStatus();
}

void ConversationsService::List(Call call, const Bytes& in) {
  Unary<v1::ListConversationsRequest, v1::ListConversationsResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::ListConversationsRequest& request,
             v1::ListConversationsResponse* response) -> absl::Status {
        FieldViolations bad;
        CheckId(request.id_prefix(), "id_prefix", kMaxId, true, &bad);
        CheckId(request.page_token(), "page_token", kMaxId, true, &bad);
        const int32_t size = PageSize(request.page_size(), kDefaultPage, &bad);
        engine::ListQuery query;
        query.tenant = call.principal().tenant;
        query.prefix = request.id_prefix();
        query.after = request.page_token();
        query.limit = size + 1;  // one more tells whether there is a next page
        if (request.has_busy()) query.busy = request.busy();
        if (request.has_has_state()) query.has_state = request.has_state();
        if (request.has_used_since()) {
          query.used_since = TakeTime(request.used_since(), "used_since", &bad);
        }
        if (request.has_used_before()) {
          query.used_before = TakeTime(request.used_before(), "used_before", &bad);
        }
        if (!bad.empty()) return bad.ToStatus();
        const auto found = store().List(query);
        for (size_t i = 0; i < found.size() && i < static_cast<size_t>(size); ++i) {
          *response->add_conversations() = Show(found[i]);
        }
        if (found.size() > static_cast<size_t>(size))
          response->set_next_page_token(found[size - 1].id);
        return absl::OkStatus();
      });
}

void ConversationsService::Delete(Call call, const Bytes& in) {
  Unary<v1::DeleteConversationRequest, v1::DeleteConversationResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::DeleteConversationRequest& request,
             v1::DeleteConversationResponse*) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", false));
        return store().Delete(KeyOf(call, request.id()));
      });
}

void ConversationsService::Fork(Call call, const Bytes& in) {
  Unary<v1::ForkConversationRequest, v1::ForkConversationResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::ForkConversationRequest& request,
             v1::ForkConversationResponse* response) -> absl::Status {
        FieldViolations bad;
        CheckId(request.id(), "id", kMaxId, false, &bad);
        const engine::NewConversation made = Made(call, request, &bad);
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
          CheckId(request.new_ids(i), absl::StrCat("new_ids[", i, "]"), kMaxId, false, &bad);
        }
        if (!bad.empty()) return bad.ToStatus();
        std::optional<int64_t> version;
        if (request.has_version()) version = request.version();
        const std::vector<std::string> ids(request.new_ids().begin(), request.new_ids().end());
        SKEIN_ASSIGN_OR_RETURN(const auto copies,
                               store().Fork(KeyOf(call, request.id()), version, count, ids, made));
        for (const engine::ConversationInfo& copy : copies) {
          *response->add_conversations() = Show(copy);
        }
        return absl::OkStatus();
      });
}

void ConversationsService::Rewind(Call call, const Bytes& in) {
  Unary<v1::RewindConversationRequest, v1::Conversation>(
      std::move(call), in,
      [this](const Call& call, const v1::RewindConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(CheckConversationId(request.id(), "id", false));
        SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                               store().Rewind(KeyOf(call, request.id()), request.version()));
        *response = Show(info);
        return absl::OkStatus();
      });
}

Service ConversationsService::methods() {
  return {kName,
          {
              {"Create", HandlerOf(this, &ConversationsService::Create)},
              {"Get", HandlerOf(this, &ConversationsService::Get)},
              {"List", HandlerOf(this, &ConversationsService::List)},
              {"Delete", HandlerOf(this, &ConversationsService::Delete)},
              {"Fork", HandlerOf(this, &ConversationsService::Fork)},
              {"Rewind", HandlerOf(this, &ConversationsService::Rewind)},
          }};
}

}  // namespace skein::server
