// skein evaluate: how good the served model is at texts, last words and choices, alone or beside
// another one (the same weights in another type). Everything is measured through Score, so it is
// what clients get.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/command.h"
#include "client/errors.h"
#include "client/evaluate_items.h"
#include "client/evaluate_run.h"
#include "engine/base/check.h"
#include "engine/tokenizer.h"
#include "nlohmann/json.hpp"

namespace skein::client {
namespace {

// Of one Tokenize call. Where each byte is a token the answer is six times as long, and 4 MiB are
// the most.
constexpr size_t kTokenizeBytes = size_t{512} << 10;
constexpr int kBarWidth = 24;

struct Options {
  std::string file, model, against, against_server;
  int64_t limit = 0;  // items or documents; 0: all
  int window = 4096;
  int parallel = 8;
};

using Figures = nlohmann::ordered_json;  // name: value

// One model's answers to a task.
class Evaluation {
 public:
  // `model` of the server that `context` names; empty: its default.
  Evaluation(const Options& options, Context* context, const std::string& model)
      : options_(options),
        context_(*context),
        model_(model),
        connection_(context->Connect()),
        scorer_(&connection_, model, options.parallel,
                [this](int64_t done, int64_t total) { Progress(done, total); }) {}

  // The name of the model and the type of its weights, as the server has it.
  grpc::Status Describe(Figures* figures);
  // The numbers of lm-evaluation-harness: each window's loss given the last token before it.
  grpc::Status Documents(const std::vector<EvaluationDocument>& documents, Figures* figures);
  // Accuracy and, where there is one choice, the perplexity of it.
  grpc::Status Items(const std::vector<EvaluationItem>& items, Figures* figures);

 private:
  grpc::Status TokenizeAll(const std::string& text, std::vector<int32_t>* tokens);
  void Progress(int64_t done, int64_t total) const;

  const Options& options_;
  Context& context_;
  const std::string model_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Connection connection_;
  Scorer scorer_;
};

// What a file asks for; whom it asks is the evaluation's.
using Task = std::function<grpc::Status(Evaluation*, Figures*)>;

grpc::Status Evaluation::Describe(Figures* figures) {
  v1::ListModelsResponse models;
  const grpc::Status status = connection_.Call(connection_.info(), &v1::Info::Stub::ListModels,
                                               v1::ListModelsRequest(), &models);
  for (const v1::Model& model : models.models()) {
    if (model_.empty() ? !model.is_default() : model.name() != model_) continue;
    (*figures)["model"] = model.name();
    (*figures)["weights"] = model.weights();
  }
  return status;
}

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

grpc::Status Evaluation::Documents(const std::vector<EvaluationDocument>& documents,
                                   Figures* figures) {
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
  figures->update({{"documents", documents.size()},
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

grpc::Status Evaluation::Items(const std::vector<EvaluationItem>& items, Figures* figures) {
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
  const auto rate = [&](const char* name, int64_t count) {
    const double value = static_cast<double>(count) / n;
    (*figures)[name] = value;
    (*figures)[absl::StrCat(name, "_stderr")] = StandardError(value, items.size());
  };
  (*figures)["items"] = items.size();
  rate("accuracy", right);
  if (words) {
    (*figures)["perplexity"] = std::exp(-log_likelihood / n);
  } else {
    rate("accuracy_norm", right_by_length);
  }
  return grpc::Status::OK;
}

// By how much each figure is more than that of the other model.
Figures Difference(const Figures& figures, const Figures& other) {
  Figures difference;
  for (const auto& [name, value] : figures.items()) {
    if (value.is_number_float() && !absl::EndsWith(name, "_stderr"))
      difference[name] = value.get<double>() - other.at(name).get<double>();
  }
  return difference;
}

std::string Show(const Figures& value) {
  if (value.is_number_float()) return absl::StrFormat("%.4f", value.get<double>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

// A line for each figure: of the model and, where there is one, of the other and how far apart.
void PrintTable(const Figures& report, Terminal* terminal) {
  const bool two = report.contains("against");
  for (const auto& [name, value] : report.items()) {
    if (value.is_object()) continue;
    std::string line = absl::StrFormat("%-22s ", name);
    if (!two || !report["against"].contains(name)) {
      absl::StrAppend(&line, Show(value));
    } else {
      absl::StrAppendFormat(&line, "%-16s %-16s", Show(value), Show(report["against"][name]));
      if (report["difference"].contains(name))
        absl::StrAppendFormat(&line, " %+.6f", report["difference"][name].get<double>());
    }
    terminal->Line(absl::StripTrailingAsciiWhitespace(line));
  }
}

grpc::Status Measure(const Options& options, const Task& task, const std::string& model,
                     Context* context, Figures* figures) {
  Evaluation evaluation(options, context, model);
  const grpc::Status status = evaluation.Describe(figures);
  return status.ok() ? task(&evaluation, figures) : status;
}

grpc::Status Evaluate(const Options& options, const char* name, const Task& task,
                      Context* context) {
  Figures report;
  report["task"] = name;
  grpc::Status status = Measure(options, task, options.model, context, &report);
  if (status.ok() && !(options.against.empty() && options.against_server.empty())) {
    // Errors name the server that is talked to.
    if (!options.against_server.empty()) context->server = options.against_server;
    status = FromAbsl(context->security.Load(context->server));
    Figures other;
    if (status.ok()) status = Measure(options, task, options.against, context, &other);
    if (status.ok()) {
      const Figures difference = Difference(report, other);
      report["against"] = other;
      report["difference"] = difference;
    }
  }
  if (!status.ok()) return status;
  if (context->json) {
    context->terminal->Raw(report.dump() + "\n");
  } else {
    PrintTable(report, context->terminal);
  }
  return grpc::Status::OK;
}

void AddOptions(CLI::App* command, Options* options, Context* context) {
  AddServerOption(command, context);
  AddJsonOption(command, context, "print the result as a line of JSON");
  command->add_option("file", options->file, "'-': standard input")->required()->type_name("FILE");
  command->add_option("--model", options->model, "the served model's name")->type_name("NAME");
  command
      ->add_option("--against", options->against,
                   "ask this model too, and print its figures and the differences")
      ->type_name("NAME");
  command
      ->add_option("--against-server", options->against_server,
                   "where that model is, when another skeind serves it; alone: the one it serves")
      ->type_name("ADDRESS");
  command->add_option("--limit", options->limit, "only the first N items or articles; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->type_name("N");
  command->add_option("--parallel", options->parallel, "calls at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
}

// `parse`: the file's text -> absl::StatusOr<Task>; its errors get the file's name.
template <typename Parse>
void AddTask(CLI::App* parent, const char* name, const char* help,
             const std::shared_ptr<Options>& options, Context* context, Parse parse) {
  CLI::App* command = parent->add_subcommand(name, help);
  AddOptions(command, options.get(), context);
  command->callback([options, context, parse, name] {
    context->run = [options, context, parse, name]() -> grpc::Status {
      std::string text;
      const grpc::Status status =
          ReadInput("", false, options->file, true, context->terminal, &text);
      if (!status.ok()) return status;
      const absl::StatusOr<Task> task = parse(text);
      if (task.ok()) return Evaluate(*options, name, *task, context);
      return FromAbsl(
          absl::InvalidArgumentError(absl::StrCat(options->file, ": ", task.status().message())));
    };
  });
}

template <typename T>
void Limit(int64_t limit, std::vector<T>* list) {
  if (limit > 0 && list->size() > static_cast<size_t>(limit))
    list->resize(static_cast<size_t>(limit));
}

Task DocumentsTask(const Options& options, std::vector<EvaluationDocument> documents) {
  Limit(options.limit, &documents);
  return [documents = std::move(documents)](Evaluation* evaluation, Figures* figures) {
    return evaluation->Documents(documents, figures);
  };
}

using ParseItems = absl::StatusOr<std::vector<EvaluationItem>>(absl::string_view);

auto ItemsTask(const std::shared_ptr<Options>& options, ParseItems* parse) {
  return [options, parse](const std::string& text) -> absl::StatusOr<Task> {
    SKEIN_ASSIGN_OR_RETURN(std::vector<EvaluationItem> items, parse(text));
    Limit(options->limit, &items);
    return [items = std::move(items)](Evaluation* evaluation, Figures* figures) {
      return evaluation->Items(items, figures);
    };
  };
}

}  // namespace

void AddEvaluate(CLI::App* app, Context* context) {
  const auto options = std::make_shared<Options>();
  CLI::App* command = app->add_subcommand(
      "evaluate", "loss of a text, accuracy of last words and choices, as the server scores them");
  command->require_subcommand(1);
  AddTask(command, "text", "loss, perplexity and bits per byte of a text file", options, context,
          [options](const std::string& text) -> absl::StatusOr<Task> {
            const auto bytes = static_cast<int64_t>(text.size());
            return DocumentsTask(*options, {{text, CountWords(text), bytes}});
          });
  AddTask(command, "wikitext", "WikiText as published: word perplexity over detokenised articles",
          options, context, [options](const std::string& text) -> absl::StatusOr<Task> {
            return DocumentsTask(*options, ParseWikiText(text));
          });
  for (const char* name : {"text", "wikitext"}) {
    command->get_subcommand(name)
        ->add_option("--window", options->window,
                     "tokens scored in one piece; each piece begins with the token before it")
        ->check(CLI::Range(1, 65536))
        ->capture_default_str();
  }
  AddTask(command, "lambada", "JSON lines {\"text\": ...}: the last word of each", options, context,
          ItemsTask(options, ParseLambada));
  AddTask(command, "choice",
          "JSON lines {\"prompt\", \"choices\", \"answer\"}, or as HellaSwag and PIQA come",
          options, context, ItemsTask(options, ParseChoices));
}

}  // namespace skein::client
