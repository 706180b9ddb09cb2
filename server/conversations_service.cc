#include "server/conversations_service.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/base/check.h"
#include "server/convert_conversations.h"

namespace skein::server {
namespace {

// Of one answer of Get at most, but for one version: what is looked at for it.
constexpr int64_t kHistoryTokens = 100000;
// What its versions have of kMaxAnswerBytes; the conversation has the rest.
constexpr size_t kHistoryBytes = kMaxAnswerBytes - (size_t{64} << 10);
constexpr size_t kFieldBytes = 8;  // at most, of a version's tag and length

engine::ConversationKey KeyOf(const Call& call, const std::string& id) {
  return {call.principal().tenant, id};
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
        SKEIN_ASSIGN_OR_RETURN(CreateCommand command, ToCommand(request));
        command.made.quotas = call.principal().quotas;
        if (!command.prompt_state.empty()) {
          SKEIN_ASSIGN_OR_RETURN(const ModelUse model, services_.Use(command.model));
          SKEIN_ASSIGN_OR_RETURN(
              command.made.prompt,
              model.instance().prompts.Find(command.prompt_state, model.instance().name()));
        }
        if (command.source.empty()) {
          SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info,
                                 store().Create(KeyOf(call, command.id), command.made));
          *response = Show(info);
          return absl::OkStatus();
        }
        std::vector<std::string> ids;
        if (!command.id.empty()) ids.push_back(command.id);
        SKEIN_ASSIGN_OR_RETURN(
            const auto copies,
            store().Fork(KeyOf(call, command.source), command.version, 1, ids, command.made));
        *response = Show(copies.at(0));
        return absl::OkStatus();
      });
}

void ConversationsService::Get(Call call, const Bytes& in) {
  Unary<v1::GetConversationRequest, v1::Conversation>(
      std::move(call), in,
      [this](const Call& call, const v1::GetConversationRequest& request,
             v1::Conversation* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(const GetCommand command, ToCommand(request));
        const engine::ConversationKey key = KeyOf(call, command.id);
        SKEIN_ASSIGN_OR_RETURN(const engine::ConversationInfo info, store().Get(key));
        *response = Show(info);
        if (!command.history) return absl::OkStatus();
        return AddHistory(key, TokenizerOf(info.vocabulary).get(), command, response);
      });
}

// A conversation outlives its model; where another one has the same vocabulary, tokens mean the
// same.
std::shared_ptr<const engine::Tokenizer> ConversationsService::TokenizerOf(
    uint64_t vocabulary) const {
  for (const auto& [name, instance] : services_.models->Named()) {
    if (instance->engine->tag().vocabulary == vocabulary) return instance->tokenizer;
  }
  return nullptr;
}

absl::Status ConversationsService::AddHistory(const engine::ConversationKey& key,
                                              const engine::Tokenizer* tokenizer,
                                              const GetCommand& command,
                                              v1::Conversation* response) const {
  if (tokenizer == nullptr) SKEIN_RETURN_IF_ERROR(services_.models->CheckList());
  int64_t after = command.after;
  SKEIN_ASSIGN_OR_RETURN(const auto versions,
                         store().History(key, after, command.size, kHistoryTokens));
  size_t bytes = 0;
  for (const engine::VersionInfo& version : versions) {
    v1::Version shown = ToProto(version, tokenizer);
    if (shown.ByteSizeLong() + kFieldBytes > kHistoryBytes) {
      // The ids fit: limits.prompt_tokens and limits.max_tokens bound them.
      shown.clear_input();
      shown.clear_output();
    }
    bytes += shown.ByteSizeLong() + kFieldBytes;
    if (bytes > kHistoryBytes && response->versions_size() > 0) break;
    *response->add_versions() = std::move(shown);
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
        SKEIN_ASSIGN_OR_RETURN(engine::ListQuery query, ToCommand(request));
        query.tenant = call.principal().tenant;
        const size_t size = query.limit++;  // one more tells whether there is a next page
        const auto found = store().List(query);
        for (size_t i = 0; i < found.size() && i < size; ++i) {
          *response->add_conversations() = Show(found[i]);
        }
        if (found.size() > size) response->set_next_page_token(found[size - 1].id);
        return absl::OkStatus();
      });
}

void ConversationsService::Delete(Call call, const Bytes& in) {
  Unary<v1::DeleteConversationRequest, v1::DeleteConversationResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::DeleteConversationRequest& request,
             v1::DeleteConversationResponse*) -> absl::Status {
        SKEIN_RETURN_IF_ERROR(Check(request));
        return store().Delete(KeyOf(call, request.id()));
      });
}

void ConversationsService::Fork(Call call, const Bytes& in) {
  Unary<v1::ForkConversationRequest, v1::ForkConversationResponse>(
      std::move(call), in,
      [this](const Call& call, const v1::ForkConversationRequest& request,
             v1::ForkConversationResponse* response) -> absl::Status {
        SKEIN_ASSIGN_OR_RETURN(ForkCommand command,
                               ToCommand(request, services_.config->Get()->limits));
        command.made.quotas = call.principal().quotas;
        SKEIN_ASSIGN_OR_RETURN(const auto copies,
                               store().Fork(KeyOf(call, command.id), command.version, command.count,
                                            command.new_ids, command.made));
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
        SKEIN_RETURN_IF_ERROR(Check(request));
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
