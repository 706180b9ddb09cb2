#include "trainer/dataset.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/base/check.h"
#include "trainer/binidx.h"

namespace skein::trainer {
namespace {

using engine::Message;
using engine::Role;
using nlohmann::json;
namespace fs = std::filesystem;

struct Corpus {
  WeightedTokens all;
  std::vector<int64_t> ends;
  bool messages = false;

  void EndDocument(float weight) {
    all.tokens.push_back(engine::kEndOfDocument);
    all.weights.push_back(weight);
    ends.push_back(static_cast<int64_t>(all.tokens.size()));
  }
};

absl::Status LoadText(const std::string& path, const engine::Tokenizer& tokenizer, Corpus* corpus) {
  SKEIN_ASSIGN_OR_RETURN(std::string text, base::ReadFile(path));
  if (text.empty()) return absl::OkStatus();
  corpus->all.Append(tokenizer, text, 1);
  corpus->EndDocument(1);
  return absl::OkStatus();
}

absl::Status LoadFolder(const std::string& path, const engine::Tokenizer& tokenizer,
                        Corpus* corpus) {
  std::vector<std::string> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(path, error), end; !error && it != end;
       it.increment(error)) {
    const bool hidden = absl::StartsWith(it->path().filename().string(), ".");
    if (it->is_regular_file() && !hidden) files.push_back(it->path().string());
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.message()));
  std::sort(files.begin(), files.end());  // the same order on every file system
  for (const std::string& file : files) SKEIN_RETURN_IF_ERROR(LoadText(file, tokenizer, corpus));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Message>> ParseMessages(const json& list) {
  if (!list.is_array()) return absl::InvalidArgumentError("\"messages\" must be a list");
  std::vector<Message> messages;
  for (const json& item : list) {
    if (!item.is_object() || !item.contains("role") || !item.contains("content") ||
        !item["role"].is_string() || !item["content"].is_string()) {
      return absl::InvalidArgumentError("a message needs \"role\" and \"content\", both strings");
    }
    const std::string role = item["role"];
    if (role != "system" && role != "user" && role != "assistant") {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown role '", role, "' (system, user and assistant are known)"));
    }
    messages.push_back({role == "user"     ? Role::kUser
                        : role == "system" ? Role::kSystem
                                           : Role::kAssistant,
                        item["content"]});
  }
  return messages;
}

absl::Status AddJsonLine(absl::string_view line, const engine::Tokenizer& tokenizer,
                         const engine::ChatTemplate& chat, const DataConfig& config,
                         Corpus* corpus) {
  const json object = json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  if (object.contains("messages")) {
    SKEIN_ASSIGN_OR_RETURN(const std::vector<Message> messages, ParseMessages(object["messages"]));
    corpus->messages = true;
    SKEIN_RETURN_IF_ERROR(
        AppendConversation(tokenizer, chat, messages, static_cast<float>(config.user_weight),
                           static_cast<float>(config.assistant_weight), &corpus->all));
    // The end of a document stops an answer too.
    corpus->EndDocument(static_cast<float>(config.assistant_weight));
    return absl::OkStatus();
  }
  if (!object.contains("text") || !object["text"].is_string()) {
    return absl::InvalidArgumentError("needs \"text\" (a string) or \"messages\"");
  }
  corpus->all.Append(tokenizer, object["text"].get<std::string>(), 1);
  corpus->EndDocument(1);
  return absl::OkStatus();
}

absl::Status LoadJsonLines(const std::string& path, const engine::Tokenizer& tokenizer,
                           const DataConfig& config, Corpus* corpus) {
  SKEIN_ASSIGN_OR_RETURN(const engine::ChatTemplate chat, engine::ChatTemplate::Create("rwkv", {}));
  SKEIN_ASSIGN_OR_RETURN(const std::string text, base::ReadFile(path));
  int64_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (line.find_first_not_of(" \t\r") == absl::string_view::npos) continue;
    const absl::Status status = AddJsonLine(line, tokenizer, chat, config, corpus);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// The default stops are a separator with the next speaker's label ("\n\nUser"), so the label after
// an answer is part of what the assistant must learn to write.
void WeighLabel(const engine::Tokenizer& tokenizer, size_t bytes, size_t begin, float weight,
                WeightedTokens* out) {
  size_t done = 0;
  for (size_t i = begin; i < out->tokens.size() && done < bytes; ++i) {
    out->weights[i] = std::max(out->weights[i], weight);
    done += tokenizer.Bytes(out->tokens[i]).size();
  }
}

std::string KindOf(const std::string& path) {
  if (absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".ndjson")) return "jsonl";
  if (absl::EndsWith(path, ".bin") || absl::EndsWith(path, ".idx")) return "binidx";
  if (!fs::exists(path) && fs::exists(path + ".idx")) return "binidx";
  return "text";
}

absl::StatusOr<TokenStream> LoadOne(const std::string& path, const DataConfig& config,
                                    const engine::Tokenizer& tokenizer, bool* messages) {
  const std::string kind = config.kind == "auto" ? KindOf(path) : config.kind;
  if (kind == "binidx") {
    SKEIN_ASSIGN_OR_RETURN(TokenStream stream, ReadBinidx(path));
    const int32_t max = stream.MaxToken();
    if (max >= tokenizer.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": holds the token id ", max, ", but the tokenizer (", tokenizer.kind(),
          ") ends at ", tokenizer.vocab_size() - 1, ": name the right one in data.tokenizer"));
    }
    return stream;
  }
  Corpus corpus;
  if (kind == "jsonl") {
    SKEIN_RETURN_IF_ERROR(LoadJsonLines(path, tokenizer, config, &corpus));
  } else if (fs::is_directory(path)) {
    SKEIN_RETURN_IF_ERROR(LoadFolder(path, tokenizer, &corpus));
  } else {
    SKEIN_RETURN_IF_ERROR(LoadText(path, tokenizer, &corpus));
  }
  if (corpus.all.tokens.empty())
    return absl::InvalidArgumentError(absl::StrCat(path, ": holds no text"));
  *messages |= corpus.messages;
  std::vector<float>& weights = corpus.all.weights;
  if (std::all_of(weights.begin(), weights.end(), [](float w) { return w == 1; })) weights.clear();
  return TokenStream(std::move(corpus.all.tokens), std::move(weights), std::move(corpus.ends));
}

}  // namespace

void WeightedTokens::Append(const engine::Tokenizer& tokenizer, absl::string_view text,
                            float weight) {
  tokenizer.Encode(text, &tokens);
  weights.resize(tokens.size(), weight);
}

absl::Status AppendConversation(const engine::Tokenizer& tokenizer,
                                const engine::ChatTemplate& chat,
                                const std::vector<Message>& messages, float user_weight,
                                float assistant_weight, WeightedTokens* out) {
  std::vector<Message> turn;  // what one request would carry: everything since the last answer
  bool answered = false;
  for (size_t i = 0; i < messages.size(); ++i) {
    const bool answer = messages[i].role == Role::kAssistant;
    if (!answer) {
      turn.push_back(messages[i]);
      if (i + 1 < messages.size()) continue;
    }
    if (turn.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", i, " of the assistant answers nothing"));
    }
    SKEIN_ASSIGN_OR_RETURN(const std::string prompt, chat.Render(turn));
    const size_t begin = out->tokens.size();
    out->Append(tokenizer, prompt, user_weight);
    if (answered) WeighLabel(tokenizer, prompt.find(':'), begin, assistant_weight, out);
    answered = answer;
    if (answer) {
      turn.push_back(messages[i]);
      SKEIN_ASSIGN_OR_RETURN(const std::string whole, chat.Render(turn));
      if (!absl::StartsWith(whole, prompt)) {
        return absl::InternalError("the chat template does not render an answer after its prompt");
      }
      out->Append(tokenizer, absl::string_view(whole).substr(prompt.size()), assistant_weight);
      out->Append(tokenizer, chat.separator(), assistant_weight);
    }
    turn.clear();
  }
  return absl::OkStatus();
}

absl::StatusOr<Dataset> LoadDataset(const DataConfig& config, const engine::Tokenizer& tokenizer) {
  Dataset data;
  SKEIN_ASSIGN_OR_RETURN(data.train, LoadOne(config.train, config, tokenizer, &data.messages));
  if (!config.validation.empty()) {
    SKEIN_ASSIGN_OR_RETURN(data.validation,
                           LoadOne(config.validation, config, tokenizer, &data.messages));
  } else if (config.validation_fraction > 0) {
    std::tie(data.train, data.validation) =
        SplitForValidation(data.train, config.validation_fraction);
  }
  return data;
}

}  // namespace skein::trainer
