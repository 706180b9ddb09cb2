// Conversations that begin with a declared prompt state.

#include <algorithm>
#include <utility>

#include "engine/base/check.h"
#include "engine/store/conversation_store_impl.h"

namespace skein::engine {

void BeginWith(std::shared_ptr<const PromptState> prompt, bool want_all_tokens, Lease* lease) {
  SKEIN_CHECK(!prompt->tokens.empty() && lease->base_version == 0);
  const std::vector<int32_t>& tokens = prompt->tokens;
  const int64_t consumed = prompt->snapshot == nullptr ? 0 : prompt->snapshot->consumed;
  const int64_t last = std::max<int64_t>(0, std::ssize(tokens) - kLastTokens);
  lease->tokens = std::ssize(tokens);
  lease->snapshot = prompt->snapshot;
  lease->pending.assign(tokens.begin() + consumed, tokens.end());
  lease->last_tokens.assign(tokens.begin() + last, tokens.end());
  if (want_all_tokens) lease->all_tokens = tokens;
  lease->prompt = std::move(prompt);
}

Lease StartFrom(std::shared_ptr<const PromptState> prompt, bool want_all_tokens) {
  Lease lease;
  lease.model = prompt->model;
  BeginWith(std::move(prompt), want_all_tokens, &lease);
  return lease;
}

int64_t ConversationStore::Impl::PromptBytes(const std::shared_ptr<const PromptState>& prompt) {
  if (prompt == nullptr) return 0;
  return kVersionBytes + std::ssize(prompt->tokens) * static_cast<int64_t>(sizeof(int32_t));
}

int64_t ConversationStore::Impl::AddPrompt(const std::shared_ptr<const PromptState>& prompt,
                                           Tenant* tenant, Conversation* conversation,
                                           Garbage* garbage) {
  std::erase_if(prompts_, [](const SharedPrompt& shared) { return shared.turn.expired(); });
  auto shared = std::find_if(prompts_.begin(), prompts_.end(), [&](const SharedPrompt& other) {
    return other.prompt.lock() == prompt;
  });
  if (shared == prompts_.end()) shared = prompts_.insert(shared, SharedPrompt{prompt, {}, {}});
  Version version;
  version.tokens = std::ssize(prompt->tokens);
  version.time = options_.wall_now();
  version.turn = shared->turn.lock();
  if (version.turn == nullptr) {
    auto turn = std::make_shared<Turn>();
    turn->input = prompt->tokens;
    turn->prompt_state = prompt->name;
    turn->model = prompt->model.fingerprint;
    turn->payer = &prompt_payer_;
    Pay(&prompt_payer_, turn->bytes());
    version.turn = std::move(turn);
    shared->turn = version.turn;
  }
  if (prompt->snapshot != nullptr) {
    const SnapshotCache::CellRef cell = shared->cell.lock();
    version.cell = cell != nullptr && cell->snapshot != nullptr
                       ? cache_.Share(cell)
                       : cache_.Add(prompt->snapshot, &prompt_payer_.states, garbage);
    shared->cell = version.cell;
  }
  Pay(tenant, kVersionBytes);
  const int64_t id = conversation->next_version++;
  conversation->versions.emplace(id, std::move(version));
  return id;
}

}  // namespace skein::engine
