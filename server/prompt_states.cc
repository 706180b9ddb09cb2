#include "server/prompt_states.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/base/check.h"
#include "server/status.h"

namespace skein::server {
namespace {

absl::StatusOr<std::string> TextOf(const PromptConfig& prompt, const ServedModel& served) {
  if (!prompt.text.empty()) return prompt.text;
  return served.chat->RenderTurns({{engine::Role::kSystem, prompt.system}});
}

}  // namespace

absl::StatusOr<PromptStates::Map> PromptStates::Declare(const std::vector<PromptConfig>& prompts,
                                                        const ServedModel& served,
                                                        const engine::ModelTag& tag) const {
  const Map present = all();
  Map states;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const PromptConfig& prompt = prompts[i];
    if (!prompt.model.empty() && prompt.model != served.name) continue;
    const absl::StatusOr<std::string> text = TextOf(prompt, served);
    if (!text.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("prompts[", i, "] ('", prompt.name,
                                                     "') does not fit model '", served.name,
                                                     "': ", text.status().message()));
    }
    std::vector<int32_t> tokens = served.tokenizer->Encode(*text);
    const auto known = present.find(prompt.name);
    if (known != present.end() && known->second->tokens == tokens) {
      states.insert(*known);
      continue;
    }
    auto state = std::make_shared<engine::PromptState>();
    state->name = prompt.name;
    state->model = tag;
    state->tokens = std::move(tokens);
    states.emplace(prompt.name, std::move(state));
  }
  return states;
}

void PromptStates::Set(Map states) {
  absl::MutexLock lock(&mu_);
  states_.swap(states);
}

void PromptStates::SetComputed(const Ref& declared, Ref computed) {
  absl::MutexLock lock(&mu_);
  const auto it = states_.find(declared->name);
  if (it != states_.end() && it->second == declared) it->second = std::move(computed);
}

PromptStates::Map PromptStates::all() const {
  absl::MutexLock lock(&mu_);
  return states_;
}

std::vector<PromptStates::Ref> PromptStates::NotComputed() const {
  std::vector<Ref> missing;
  absl::MutexLock lock(&mu_);
  for (const auto& [name, state] : states_) {
    if (!state->computed()) missing.push_back(state);
  }
  return missing;
}

absl::StatusOr<PromptStates::Ref> PromptStates::Find(const std::string& name,
                                                     const std::string& model) const {
  std::vector<std::string> names;
  {
    absl::MutexLock lock(&mu_);
    const auto it = states_.find(name);
    if (it != states_.end()) return it->second;
    for (const auto& [known, state] : states_) names.push_back(known);
  }
  return base::MakeStatus(
      absl::StatusCode::kNotFound, "PROMPT_STATE_NOT_FOUND",
      absl::StrCat("model '", model, "' has no prompt state '", name, "'; ",
                   names.empty() ? "it has none" : "it has: ", absl::StrJoin(names, ", ")));
}

}  // namespace skein::server
