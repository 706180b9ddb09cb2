#include "trainer/task.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/file.h"
#include "engine/chat_template.h"
#include "trainer/dataset.h"
#include "trainer/demo_data.h"

namespace skein::trainer {
namespace {

constexpr size_t kLargestEmbeddedVocabulary = 512 << 10;
constexpr int64_t kDemoValidationRows = 128;

absl::Status UseVocabularyFile(const std::string& path, Task* task) {
  auto text = base::ReadFile(path);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat("data.tokenizer: ", text.status().message(),
                                     " (auto, bytes or a vocabulary file)"));
  }
  SKEIN_ASSIGN_OR_RETURN(task->tokenizer, engine::ParseWorldVocabulary(*text));
  if (text->size() <= kLargestEmbeddedVocabulary) {
    task->metadata[engine::kMetaVocabulary] = *std::move(text);
  } else {
    task->vocabulary_file = path;
  }
  return absl::OkStatus();
}

absl::Status MakeTokenizer(const Config& config, const engine::Checkpoint* init, Task* task) {
  const std::string& name = config.data.tokenizer;
  if (task->demo) {
    const std::string text = DemoVocabulary();
    SKEIN_ASSIGN_OR_RETURN(task->tokenizer, engine::ParseWorldVocabulary(text));
    task->metadata[engine::kMetaVocabulary] = text;
  } else if (name == "bytes" || (name == "auto" && init == nullptr)) {
    task->tokenizer = engine::NewByteTokenizer();
  } else if (name == "auto") {
    SKEIN_ASSIGN_OR_RETURN(task->tokenizer, engine::TokenizerFor(*init, "", "data.tokenizer"));
    auto vocabulary = init->metadata().find(engine::kMetaVocabulary);
    if (vocabulary != init->metadata().end())
      task->metadata[engine::kMetaVocabulary] = vocabulary->second;
  } else {
    SKEIN_RETURN_IF_ERROR(UseVocabularyFile(name, task));
  }
  task->metadata[engine::kMetaTokenizer] = task->tokenizer->kind();
  return absl::OkStatus();
}

// Rows of embedding and head: as many as ids; rounded up for large vocabularies, as the published
// models do.
int64_t RowsFor(const engine::Tokenizer& tokenizer) {
  const int64_t ids = tokenizer.vocab_size();
  return ids > 1024 ? (ids + 63) / 64 * 64 : ids;
}

void DescribeDemo(Task* task) {
  task->metadata[engine::kMetaChatTemplate] = "rwkv";
  task->metadata[engine::kMetaStops] = nlohmann::json(std::vector<std::string>{"\n\n"}).dump();
  task->metadata[engine::kMetaExamples] = nlohmann::json(DemoExamples()).dump();
  task->metadata[engine::kMetaDescription] = DemoDescription();
  task->description = "dialogues made on the fly";
}

// What the checkpoint was served with, also when its file does not say so (a published .pth).
absl::Status KeepChatTemplate(const engine::Checkpoint& init, Task* task) {
  SKEIN_ASSIGN_OR_RETURN(const engine::ChatTemplate chat, engine::ChatTemplate::For(init));
  task->metadata[engine::kMetaChatTemplate] = chat.name();
  const auto stops = init.metadata().find(engine::kMetaStops);
  if (stops != init.metadata().end()) task->metadata[engine::kMetaStops] = stops->second;
  return absl::OkStatus();
}

absl::Status LoadFiles(const Config& config, const engine::Checkpoint* init, Task* task) {
  SKEIN_ASSIGN_OR_RETURN(Dataset data, LoadDataset(config.data, *task->tokenizer));
  SKEIN_ASSIGN_OR_RETURN(
      const Sampler sampler,
      Sampler::Create(config.data.sampler, data.train.size(), config.train.context,
                      static_cast<uint64_t>(config.train.seed)));
  task->train_tokens = data.train;
  task->validation_tokens = data.validation;
  task->source = std::make_unique<WindowSource>(data.train, sampler, config.train.context,
                                                config.data.document_reset);
  task->metadata[engine::kMetaChatTemplate] = data.messages ? "rwkv" : "none";
  if (init != nullptr && !data.messages) SKEIN_RETURN_IF_ERROR(KeepChatTemplate(*init, task));
  task->description = absl::StrFormat("%s (%d tokens, %d windows by %s; validation %d tokens)",
                                      config.data.train, data.train.size(), sampler.windows(),
                                      sampler.magic_prime() ? "magic prime" : "permutation",
                                      data.validation.size());
  return absl::OkStatus();
}

}  // namespace

std::vector<Batch> Task::Validation(const Config& config, bool full, int64_t B) const {
  const int64_t T = config.train.context;
  if (!demo) {
    if (validation_tokens.size() < 2) return {};
    return ValidationBatches(validation_tokens, T, B, full ? 0 : config.evaluate.max_windows,
                             config.data.document_reset);
  }
  const DemoSource held_out(*tokenizer, T, static_cast<uint64_t>(config.train.seed) + 1,
                            /*held_out=*/true);
  std::vector<Batch> batches;
  for (int64_t at = 0; at < kDemoValidationRows; at += B) {
    batches.push_back(held_out.Get(at, std::min(B, kDemoValidationRows - at)));
  }
  return batches;
}

absl::StatusOr<Task> MakeTask(const Config& config, const engine::Checkpoint* init) {
  Task task;
  task.demo = config.data.kind == "recall-demo";
  SKEIN_RETURN_IF_ERROR(MakeTokenizer(config, init, &task));
  task.V = RowsFor(*task.tokenizer);
  task.metadata[engine::kMetaContext] = absl::StrCat(config.train.context);
  if (task.demo) {
    DescribeDemo(&task);
    task.source =
        std::make_unique<DemoSource>(*task.tokenizer, config.train.context,
                                     static_cast<uint64_t>(config.train.seed), /*held_out=*/false);
    return task;
  }
  SKEIN_RETURN_IF_ERROR(LoadFiles(config, init, &task));
  return task;
}

}  // namespace skein::trainer
