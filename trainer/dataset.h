#pragma once
// From the user's files to streams of tokens: text, folders, JSON lines (text or messages), binidx.

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/chat_template.h"
#include "engine/tokenizer.h"
#include "trainer/config.h"
#include "trainer/tokens.h"

namespace skein::trainer {

struct Dataset {
  TokenStream train;
  TokenStream validation;
  bool messages = false;  // the data are conversations
};

// Reads config.data.train and .validation. Errors name file and line. UTF-8 is not required: the
// tokenizers take any bytes; JSON lines must be valid JSON.
absl::StatusOr<Dataset> LoadDataset(const DataConfig& config, const engine::Tokenizer& tokenizer);

struct WeightedTokens {
  std::vector<int32_t> tokens;
  std::vector<float> weights;
  // Tokenises `text` on its own, so that no token crosses into a neighbouring piece.
  void Append(const engine::Tokenizer& tokenizer, absl::string_view text, float weight);
};

// A conversation exactly as the server feeds it: each turn's text is encoded on its own ("User:
// ...\n\nAssistant:"), so is each answer (" ..."), and so is the separator after it. The separator
// and the next speaker's label count as the assistant's: answers stop there. Does not append id 0.
absl::Status AppendConversation(const engine::Tokenizer& tokenizer,
                                const engine::ChatTemplate& chat,
                                const std::vector<engine::Message>& messages, float user_weight,
                                float assistant_weight, WeightedTokens* out);

}  // namespace skein::trainer
