// skein evaluate: how good the served model is at texts, last words and choices. Everything is
// measured through Score, so it is what clients get.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/evaluate_items.h"
#include "client/evaluate_run.h"
#include "engine/base/file.h"
#include "engine/tokenizer.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

// Of one Tokenize call. Where each byte is a token the answer is six times as long, and 4 MiB are
// the most.
constexpr size_t kTokenizeBytes = size_t{512} << 10;
constexpr int kBarWidth = 24;

struct Options {
  std::string file, model;
  int64_t limit = 0;  // items or documents; 0: all
  int window = 4096;
  int parallel = 8;
};

using Report = nlohmann::ordered_json;

// What all tasks share: the file, the calls, the output.
class Evaluation {
 public:
  Evaluation(const Options& options, Context* context)
      : options_(options),
        context_(*context),
        connection_(context->Connect()),
        scorer_(&connection_, options.model, options.parallel,
                [this](int64_t done, int64_t total) { Progress(done, total); }) {}

  grpc::Status ReadText(std::string* text) const {
    return ReadInput("", false, options_.file, true, context_.terminal, text);
  }

  // The numbers of lm-evaluation-harness: each window's loss given the last token before it.
  grpc::Status Documents(const char* task, std::vector<EvaluationDocument> documents);
  // Accuracy and, where there is one choice, the perplexity of it.
  grpc::Status Items(const char* task, std::vector<EvaluationItem> items);

 private:
  template <typename T>
  void Limit(std::vector<T>* list) const {
    if (options_.limit > 0 && list->size() > static_cast<size_t>(options_.limit))
      list->resize(static_cast<size_t>(options_.limit));
  }
  grpc::Status TokenizeAll(const std::string& text, std::vector<int32_t>* tokens);
  void Progress(int64_t done, int64_t total) const;
  void Print(const Report& report) const;

  const Options& options_;
  Context& context_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Connection connection_;
  Scorer scorer_;
};

// Texts beyond one call are cut after a line's end.
grpc::Status Evaluation::TokenizeAll(const std::string& text, std::vector<int32_t>* tokens) {
  tokens->clear();
  for (size_t at = 0; at < text.size();) {
    size_t size = std::min(kTokenizeBytes, text.size() - at);
    if (at + size < text.size()) {
      const size_t line_end = text.rfind('\n', at + size - 1);
      if (line_end != std::string::npos && line_end > at) {
        size = line_end + 1 - at;
      } else {
        while (size > 1 && (static_cast<unsigned char>(text[at + size]) & 0xC0) == 0x80) --size;
      }
    }
    std::vector<int32_t> part;
    const grpc::Status status = scorer_.Tokenize(text.substr(at, size), &part);
    if (!status.ok()) return status;
    tokens->insert(tokens->end(), part.begin(), part.end());
    at += size;
  }
  return grpc::Status::OK;
}

void Evaluation::Progress(int64_t done, int64_t total) const {
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  std::string line =
      absl::StrFormat("[%-*s] %d of %d", kBarWidth,
                      std::string(static_cast<size_t>(share * kBarWidth), '#'), done, total);
  if (done > 0) absl::StrAppendFormat(&line, "  %.0f s left", seconds / share - seconds);
  context_.terminal->Transient(line);
}

void Evaluation::Print(const Report& report) const {
  if (context_.json) {
    context_.terminal->Raw(report.dump() + "\n");
    return;
  }
  for (const auto& [name, value] : report.items()) {
    context_.terminal->Line(absl::StrFormat(
        "%-22s %s", name,
        value.is_number_float() ? absl::StrFormat("%.4f", value.get<double>())
                                : (value.is_string() ? value.get<std::string>() : value.dump())));
  }
}

grpc::Status Evaluation::Documents(const char* task, std::vector<EvaluationDocument> documents) {
  Limit(&documents);
  Loss loss;
  std::vector<ScoreJob> jobs;
  for (const EvaluationDocument& document : documents) {
    loss.words += document.words;
    loss.bytes += document.bytes;
    std::vector<int32_t> tokens;
    const grpc::Status status = TokenizeAll(document.text, &tokens);
    if (!status.ok()) return status;
    loss.tokens += static_cast<int64_t>(tokens.size());
    int32_t before = engine::kEndOfDocument;
    for (size_t at = 0; at < tokens.size(); at += static_cast<size_t>(options_.window)) {
      const size_t end = std::min(tokens.size(), at + static_cast<size_t>(options_.window));
      jobs.push_back({{before},
                      {{tokens.begin() + static_cast<int64_t>(at),
                        tokens.begin() + static_cast<int64_t>(end)}}});
      before = tokens[end - 1];
    }
  }
  if (jobs.empty()) return FromAbsl(absl::InvalidArgumentError("there is no text to evaluate"));
  std::vector<std::vector<ScoredContinuation>> scores;
  const grpc::Status status = scorer_.Run(jobs, &scores);
  if (!status.ok()) return status;
  for (const auto& window : scores) loss.log_likelihood += window[0].log_likelihood;
  Print({{"task", task},
         {"documents", documents.size()},
         {"tokens", loss.tokens},
         {"loss", loss.PerToken()},
         {"perplexity", loss.Perplexity()},
         {"bits_per_byte", loss.BitsPerByte()},
         {"byte_perplexity", loss.BytePerplexity()},
         {"word_perplexity", loss.WordPerplexity()}});
  return grpc::Status::OK;
}

double StandardError(double rate, size_t n) {
  return n > 1 ? std::sqrt(rate * (1 - rate) / static_cast<double>(n - 1)) : 0;
}

// Characters of a choice, without the space that separates it from the prompt.
double Length(const std::string& choice) {
  return static_cast<double>(std::max<int64_t>(1, CountCharacters(choice) - (choice[0] == ' ')));
}

int32_t Best(const std::vector<ScoredContinuation>& scores, const std::vector<std::string>* norm) {
  size_t best = 0;
  const auto value = [&](size_t i) {
    return scores[i].log_likelihood / (norm != nullptr ? Length((*norm)[i]) : 1.0);
  };
  for (size_t i = 1; i < scores.size(); ++i) {
    if (value(i) > value(best)) best = i;
  }
  return static_cast<int32_t>(best);
}

grpc::Status Evaluation::Items(const char* task, std::vector<EvaluationItem> items) {
  Limit(&items);
  if (items.empty()) return FromAbsl(absl::InvalidArgumentError("there is nothing to evaluate"));
  std::vector<ScoreJob> jobs(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    grpc::Status status = scorer_.Tokenize(items[i].prompt, &jobs[i].prompt);
    jobs[i].prompt.insert(jobs[i].prompt.begin(), engine::kEndOfDocument);
    for (const std::string& choice : items[i].choices) {
      jobs[i].continuations.emplace_back();
      if (status.ok()) status = scorer_.Tokenize(choice, &jobs[i].continuations.back());
    }
    if (!status.ok()) return status;
  }
  std::vector<std::vector<ScoredContinuation>> scores;
  const grpc::Status status = scorer_.Run(jobs, &scores);
  if (!status.ok()) return status;
  int64_t right = 0, right_by_length = 0;
  double log_likelihood = 0;
  const bool words = items[0].choices.size() == 1;
  for (size_t i = 0; i < items.size(); ++i) {
    log_likelihood += scores[i][static_cast<size_t>(items[i].answer)].log_likelihood;
    right += words ? scores[i][0].greedy : Best(scores[i], nullptr) == items[i].answer;
    right_by_length += Best(scores[i], &items[i].choices) == items[i].answer;
  }
  const double n = static_cast<double>(items.size());
  Report report{{"task", task},
                {"items", items.size()},
                {"accuracy", static_cast<double>(right) / n},
                {"accuracy_stderr", StandardError(static_cast<double>(right) / n, items.size())}};
  if (words) {
    report["perplexity"] = std::exp(-log_likelihood / n);
  } else {
    const double rate = static_cast<double>(right_by_length) / n;
    report["accuracy_norm"] = rate;
    report["accuracy_norm_stderr"] = StandardError(rate, items.size());
  }
  Print(report);
  return grpc::Status::OK;
}

// Reads the file and hands its text over; a file that does not parse is named.
template <typename Task>
void AddTask(CLI::App* parent, const char* name, const char* help,
             const std::shared_ptr<Options>& options, Context* context, Task task) {
  CLI::App* command = parent->add_subcommand(name, help);
  AddServerOption(command, context);
  AddJsonOption(command, context, "print the result as a line of JSON");
  command->add_option("file", options->file, "'-': standard input")->required()->type_name("FILE");
  command->add_option("--model", options->model, "the served model's name")->type_name("NAME");
  command->add_option("--limit", options->limit, "only the first N items or articles; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_option("--parallel", options->parallel, "calls at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->callback([options, context, task, name] {
    context->run = [options, context, task, name]() -> grpc::Status {
      Evaluation evaluation(*options, context);
      std::string text;
      const grpc::Status status = evaluation.ReadText(&text);
      return status.ok() ? task(&evaluation, name, std::move(text)) : status;
    };
  });
}

// An item task whose file is parsed by `parse`.
template <typename Parse>
auto ItemTask(std::shared_ptr<Options> options, Parse parse) {
  return [options, parse](Evaluation* evaluation, const char* name, std::string text) {
    absl::StatusOr<std::vector<EvaluationItem>> items = parse(text);
    if (items.ok()) return evaluation->Items(name, *std::move(items));
    return FromAbsl(
        absl::InvalidArgumentError(absl::StrCat(options->file, ": ", items.status().message())));
  };
}

}  // namespace

void AddEvaluate(CLI::App* app, Context* context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand(
      "evaluate", "loss of a text, accuracy of last words and choices, as the server scores them");
  command->require_subcommand(1);
  AddTask(command, "text", "loss, perplexity and bits per byte of a text file", options, context,
          [](Evaluation* evaluation, const char* name, std::string text) {
            EvaluationDocument document;
            document.words = CountWords(text);
            document.bytes = static_cast<int64_t>(text.size());
            document.text = std::move(text);
            return evaluation->Documents(name, {document});
          });
  AddTask(command, "wikitext", "WikiText as published: word perplexity over detokenised articles",
          options, context, [](Evaluation* evaluation, const char* name, const std::string& text) {
            return evaluation->Documents(name, ParseWikiText(text));
          });
  for (const char* name : {"text", "wikitext"}) {
    command->get_subcommand(name)
        ->add_option("--window", options->window,
                     "tokens scored in one piece; each piece begins with the token before it")
        ->check(CLI::Range(1, 65536))
        ->capture_default_str();
  }
  AddTask(command, "lambada", "JSON lines {\"text\": ...}: the last word of each", options, context,
          ItemTask(options, ParseLambada));
  AddTask(command, "choice",
          "JSON lines {\"prompt\", \"choices\", \"answer\"}, or as HellaSwag and PIQA come",
          options, context, ItemTask(options, ParseChoices));
}

}  // namespace skein::client
